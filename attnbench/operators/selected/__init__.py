"""Selected: each query chooses the keys that it sees, by scores of their content."""
