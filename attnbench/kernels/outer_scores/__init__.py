"""Attention with scores that are outer products of vectors."""
