"""Stores: what segments are read from and written to, and the ledger of what is verified there."""
