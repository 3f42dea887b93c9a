"""Kernelized: keys and values are summed first, queries read the sum."""
