"""Mixing: tokens are mixed by a fixed or learned map, without attention."""
