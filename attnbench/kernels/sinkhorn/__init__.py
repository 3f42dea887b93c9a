"""Attention among matched blocks, with Sinkhorn balancing (Sparse Sinkhorn Attention)."""
