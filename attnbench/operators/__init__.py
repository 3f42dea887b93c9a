"""One file per operator, in folders that name the field's families; scanned by `attnbench.registry`."""
