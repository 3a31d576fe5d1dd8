"""From the start of an instance to its first token: `make bench-start`."""
