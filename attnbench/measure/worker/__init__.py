"""The measured process: torch, numpy and the standard library only."""
