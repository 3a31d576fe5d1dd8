"""What an engine's model holds."""
