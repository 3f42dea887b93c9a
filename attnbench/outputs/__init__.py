"""One file per output: views of records and analyses, no arithmetic."""
