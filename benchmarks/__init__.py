"""How fast netloader is, beside what the machine itself can do. `make bench-quick` is the start."""
