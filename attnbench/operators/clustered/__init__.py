"""Clustered: which pairs meet is learned or hashed from the data."""
