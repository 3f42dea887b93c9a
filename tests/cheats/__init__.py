"""Impls that seem fast because they do not compute; loaded as a user's own would be."""
