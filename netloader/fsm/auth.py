"""Mutual proof of one shared token (HMAC-SHA256, RFC 2104) over both nonces. Law: pure."""

import hashlib
import hmac

from netloader.config import Secret


def proof(token: Secret, side: str, client_nonce: str, server_nonce: str) -> str:
    """The proof of one side, hex.

    The side's name is part of the message, so a proof cannot be mirrored back to its sender;
    both nonces are, so it cannot be replayed.
    """
    text = f"netloader|{side}|{client_nonce}|{server_nonce}"
    return hmac.new(token.reveal().encode(), text.encode(), hashlib.sha256).hexdigest()


def proves(mac: str, token: Secret, side: str, client_nonce: str, server_nonce: str) -> bool:
    """Whether `mac` is the proof of `side`, compared in constant time; any peer text is allowed."""
    expected = proof(token, side, client_nonce, server_nonce)
    return hmac.compare_digest(mac.encode(), expected.encode())
