"""Recurrent: one token after another changes a state of fixed size, which forgets; computed by chunks of tokens."""
