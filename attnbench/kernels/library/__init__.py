"""What is a library's call: torch's SDPA backends, flash-linear-attention, and sums by torch.compile."""
