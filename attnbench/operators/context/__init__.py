"""Context: the context is summarised into a map or a factorisation that every token reads."""
