"""One file per metric; each defines METRIC (torch is imported only where it measures)."""
