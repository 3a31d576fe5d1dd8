"""Find sources: who serves this model now, and how a server says that it does."""
