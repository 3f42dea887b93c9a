"""Sparse patterns as FlexAttention block masks."""
