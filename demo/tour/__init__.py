"""A tour of a small fleet: what its operator sees of each situation, and a check of that."""
