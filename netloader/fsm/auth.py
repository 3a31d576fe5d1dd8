"""Mutual authentication by a shared token: HMAC-SHA256 (RFC 2104) over the messages.

Five messages carry a `mac`: the server's challenge, offer and description, and the client's hello
and answer. Each `mac` covers what the client opened with, the server's nonce and every other field
of its message. The client's hello follows the server's challenge, so a server that has proven
nothing does not hear what the client wants; the messages after the hello cover it, and with it all
that went before.

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
    Start,
)

PROOFS: Final = ("mac", "macs")
"""The fields of messages that hold proofs."""
Proven: TypeAlias = Challenge | Hello | Offer | Description | Answer
"""The messages that carry a proof."""
P = TypeVar("P", bound=Proven)

SPEAKERS: Final[Mapping[type[Proven], str]] = {
    Challenge: "server",
    Hello: "client",
    Offer: "server",
    Description: "server",
    Answer: "client",
}
"""Which side sends each of them."""
Opening: TypeAlias = Start | Hello
"""What the client has said: its start, for challenge and hello; its hello, for what follows."""


def challenge(tokens: Sequence[Secret], start: Start, nonce: str) -> Challenge:
    """The server's challenge, with a proof for each of its tokens: it knows not which is theirs."""
    plain = Challenge(nonce)
    first, *others = (_mac(plain, token, start, nonce) for token in tokens)
    return Challenge(nonce, first, tuple(others))


def challenges(message: Challenge, token: Secret, start: Start) -> bool:
    """Whether a challenge proves a token with any of its proofs. Constant time, as `proves`."""
    proofs = [replace(message, mac=mac, macs=()) for mac in (message.mac, *message.macs)]
    return any([proves(each, token, start, message.nonce) for each in proofs])  # noqa: C419 - each


def known(message: Hello, tokens: Sequence[Secret], start: Start, nonce: str) -> Secret | None:
    """The token that a client has proven, or None. Each is tried, so time does not tell which."""
    fitting = [token for token in tokens if proves(message, token, start, nonce)]
    return fitting[0] if fitting else None


def proven(message: P, token: Secret | None, opening: Opening, nonce: str) -> P:
    """The message with its `mac`; unchanged if there is no token. `nonce` is the server's."""
    return message if token is None else replace(message, mac=_mac(message, token, opening, nonce))


def proves(message: Proven, token: Secret, opening: Opening, nonce: str) -> bool:
    """Whether the `mac` of a message is valid. Constant time; any text from a peer is allowed."""
    said = message.mac.encode(errors="surrogatepass")
    return hmac.compare_digest(said, _mac(message, token, opening, nonce).encode())


def authenticated(message: Proven, opening: Opening, nonce: str) -> bytes:
    """The bytes that a `mac` covers: side and kind of message, opening, nonce, all other fields.

    The fields are read from the message's class, so a field that is added later is covered too. One
    that is None is left out.
    """
    values = {f.name: getattr(message, f.name) for f in fields(message) if f.name not in PROOFS}
    content = {name: value for name, value in values.items() if value is not None}
    if isinstance(message, Offer) and isinstance(opening, Hello):
        manifest = message.manifest
        content["manifest"] = opening.manifest_digest if manifest is None else manifest.digest
    if isinstance(message, Description) and message.manifest is not None:
        content["manifest"] = message.manifest.digest
    kind = type(message)
    about = ("netloader", PROTOCOL_VERSION, SPEAKERS[kind], kind.__name__.lower())
    return canonical((*about, opening, nonce, content))


def hmac_sha256(content: bytes, token: Secret) -> str:
    """The proof of a token over some bytes, as 64 hexadecimal digits."""
    return hmac.new(token.reveal().encode(), content, hashlib.sha256).hexdigest()


def _mac(message: Proven, token: Secret, opening: Opening, nonce: str) -> str:
    return hmac_sha256(authenticated(message, opening, nonce), token)
