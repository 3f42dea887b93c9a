"""Synthesized: the weights do not come from comparing queries with keys."""
