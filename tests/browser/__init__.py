"""The HTML report in a browser: `make browser-test`. `make test` does not collect these."""
