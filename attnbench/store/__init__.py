"""Run folders: the schema of what is stored, the journal that writes it, and reading what may be anybody's."""
