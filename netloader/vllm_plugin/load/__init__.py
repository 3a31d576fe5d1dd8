"""Fill a model from a source, or fall back to the ordinary loader."""
