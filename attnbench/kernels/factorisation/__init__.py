"""Non-negative matrix factorisation by multiplicative updates (Hamburger)."""
