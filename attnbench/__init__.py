"""attnbench: at which size does O(N²) attention stop paying on this hardware, and what should replace it?"""

__version__ = "0.1.0"
