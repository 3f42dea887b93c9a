"""One file per verb; each defines `command`, and __main__ registers it under the file's name."""
