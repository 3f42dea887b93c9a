"""Attention among tokens sorted by hash, in chunks (Reformer)."""
