"""What is known of the machine: environment, load, NVML, the allocator, peak rates, and advice."""
