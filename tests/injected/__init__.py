"""Operators whose impls fail on purpose; loaded as a user's own would be (`operators_from: [tests.injected]`)."""
