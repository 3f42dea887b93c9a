"""Runs and shards of one suite are joined into one run: what belongs together, and what becomes of it."""
