"""A fleet on Ray and on Slurm, for real: `make fleet-test`. `make test` does not collect these."""
