"""Tokens and certificates: what proves a peer. Read again when their files have changed."""
