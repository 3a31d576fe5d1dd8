"""Keep clients from an instance that has no weights yet, and let it be filled."""
