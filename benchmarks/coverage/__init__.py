"""Simulated and recorded noise, and how often the intervals and labels that come from it hold the truth."""
