"""Mutual proof of one shared token (HMAC-SHA256, RFC 2104) over what was said. Law: pure.

Four messages carry a `mac`: the server's challenge, offer and description, the client's proof. Each
covers the client's whole hello, the server's nonce and everything in the message itself, so
somebody on the path can neither change one of them nor repeat it in another session.
docs/protocol.md shows the bytes.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Final, TypeAlias, TypeVar

from netloader.config import Secret
from netloader.fsm.canonical import canonical
from netloader.fsm.messages import (
    PROTOCOL_VERSION,
    Challenge,
    Description,
    Hello,
    Offer,
    Proof,
)

Proven: TypeAlias = Challenge | Proof | Offer | Description
"""The messages that carry a proof."""
P = TypeVar("P", bound=Proven)

SPEAKERS: Final[Mapping[type[Proven], str]] = {
    Challenge: "server",
    Proof: "client",
    Offer: "server",
    Description: "server",
}
"""Which side says them."""


def proven(message: P, token: Secret | None, hello: Hello, nonce: str) -> P:
    """The message with its proof, in answer to `hello`; without one where there is no token.

    `nonce` is the server's.
    """
    return message if token is None else replace(message, mac=_mac(message, token, hello, nonce))


def proves(message: Proven, token: Secret, hello: Hello, nonce: str) -> bool:
    """Whether a message carries its proof, compared in constant time; any peer text is allowed."""
    said = message.mac.encode(errors="surrogatepass")
    return hmac.compare_digest(said, _mac(message, token, hello, nonce).encode())


def authenticated(message: Proven, hello: Hello, nonce: str) -> bytes:
    """What a proof is made over: which message of which side, and all that was said before it.

    Its fields are taken from the class, so one that is added is under the proof from the first.
    """
    content = {f.name: getattr(message, f.name) for f in fields(message) if f.name != "mac"}
    if isinstance(message, Offer):
        content["manifest"] = message.manifest.digest
    kind = type(message)
    about = ("netloader", PROTOCOL_VERSION, SPEAKERS[kind], kind.__name__.lower())
    return canonical((*about, hello, nonce, content))


def _mac(message: Proven, token: Secret, hello: Hello, nonce: str) -> str:
    text = authenticated(message, hello, nonce)
    return hmac.new(token.reveal().encode(), text, hashlib.sha256).hexdigest()
