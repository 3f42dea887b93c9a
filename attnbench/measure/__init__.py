"""What measures: the runner, its workers, crossover probes and gate pairs, and the git worktrees they run in."""
