"""Kernelized attention: feature maps, sums over keys, and their causal scan."""
