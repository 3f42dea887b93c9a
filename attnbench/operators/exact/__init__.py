"""Exact: every pair of tokens, nothing approximated."""
