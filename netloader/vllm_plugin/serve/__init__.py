"""Serve what this rank has loaded."""
