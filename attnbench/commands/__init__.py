"""One file per verb, which defines `command`: it parses, calls and prints. Helpers begin with `_`."""
