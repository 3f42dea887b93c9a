"""Triton kernels, one file per algorithm; never imported by a reference."""
