"""One file per output, which is a `--format` by its name; helpers begin with `_`. Views of analyses, no arithmetic."""
