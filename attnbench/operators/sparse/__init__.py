"""Sparse: which pairs meet is set by hand."""
