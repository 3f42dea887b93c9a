"""Attention of many queries to few keys, in one pass."""
