"""Mutual authentication by a shared token: HMAC-SHA256 (RFC 2104) over the messages.

Five messages carry a `mac`: the server's challenge, offer and description, and the client's proof
and answer.
Each `mac` covers the whole client hello, the server's nonce and every other field of its message.
An attacker on the path can therefore neither change one of these messages nor replay it in another
session. docs/protocol/conversation.md shows the bytes.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Final, TypeAlias, TypeVar

from netloader.config import Secret
from netloader.fsm.canonical import canonical
from netloader.fsm.messages import (
    PROTOCOL_VERSION,
    Answer,
    Challenge,
    Description,
    Hello,
    Offer,
    Proof,
)

PROOFS: Final = ("mac", "macs")
"""The fields of messages that hold proofs."""
Proven: TypeAlias = Challenge | Proof | Offer | Description | Answer
"""The messages that carry a proof."""
P = TypeVar("P", bound=Proven)

SPEAKERS: Final[Mapping[type[Proven], str]] = {
    Challenge: "server",
    Proof: "client",
    Offer: "server",
    Description: "server",
    Answer: "client",
}
"""Which side sends each of them."""


def challenge(tokens: Sequence[Secret], hello: Hello, nonce: str) -> Challenge:
    """The server's challenge, with a proof for each of its tokens: it knows not which is theirs."""
    plain = Challenge(nonce)
    first, *others = (_mac(plain, token, hello, nonce) for token in tokens)
    return Challenge(nonce, first, tuple(others))


def challenges(message: Challenge, token: Secret, hello: Hello) -> bool:
    """Whether a challenge proves a token with any of its proofs. Constant time, as `proves`."""
    proofs = [replace(message, mac=mac, macs=()) for mac in (message.mac, *message.macs)]
    return any([proves(each, token, hello, message.nonce) for each in proofs])  # noqa: C419 - each


def known(message: Proof, tokens: Sequence[Secret], hello: Hello, nonce: str) -> Secret | None:
    """The token that a client has proven, or None. Each is tried, so time does not tell which."""
    fitting = [token for token in tokens if proves(message, token, hello, nonce)]
    return fitting[0] if fitting else None


def proven(message: P, token: Secret | None, hello: Hello, nonce: str) -> P:
    """The message with its `mac`, in answer to `hello`; unchanged if there is no token.

    `nonce` is the server's.
    """
    return message if token is None else replace(message, mac=_mac(message, token, hello, nonce))


def proves(message: Proven, token: Secret, hello: Hello, nonce: str) -> bool:
    """Whether the `mac` of a message is valid. Constant time; any text from a peer is allowed."""
    said = message.mac.encode(errors="surrogatepass")
    return hmac.compare_digest(said, _mac(message, token, hello, nonce).encode())


def authenticated(message: Proven, hello: Hello, nonce: str) -> bytes:
    """The bytes that a `mac` covers: side and kind of message, hello, nonce and all other fields.

    The fields are read from the message's class, so a field that is added later is covered too. One
    that is None is left out.
    """
    values = {f.name: getattr(message, f.name) for f in fields(message) if f.name not in PROOFS}
    content = {name: value for name, value in values.items() if value is not None}
    if isinstance(message, Offer):
        manifest = message.manifest
        content["manifest"] = hello.manifest_digest if manifest is None else manifest.digest
    if isinstance(message, Description) and message.manifest is not None:
        content["manifest"] = message.manifest.digest
    kind = type(message)
    about = ("netloader", PROTOCOL_VERSION, SPEAKERS[kind], kind.__name__.lower())
    return canonical((*about, hello, nonce, content))


def _mac(message: Proven, token: Secret, hello: Hello, nonce: str) -> str:
    text = authenticated(message, hello, nonce)
    return hmac.new(token.reveal().encode(), text, hashlib.sha256).hexdigest()
