"""Operators whose make_inputs return what does not fit their cell; loaded as a user's own would be."""
