"""Suites and run folders with one mutation each, drawn from a seed, and whether what becomes of them is right."""
