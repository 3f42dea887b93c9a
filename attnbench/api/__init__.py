"""What `import attnbench` offers: the same functions as the verbs, for Python and notebooks."""
