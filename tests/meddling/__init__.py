"""Operators that leave their process otherwise than they found it; loaded as a user's own would be."""
