"""Verdicts on two runs: which cells match, what must agree, exact figures, times in pairs."""
