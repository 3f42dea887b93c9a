"""Row and column sums of a map in one pass, and their adjoint, the outer sum (KAO)."""
