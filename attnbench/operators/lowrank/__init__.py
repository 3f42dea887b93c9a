"""Low rank: every query sees fewer keys than there are tokens."""
