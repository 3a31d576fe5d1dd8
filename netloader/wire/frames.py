"""Messages to frames and back: bounded and incremental; no byte of a peer raises.

A frame is 4 bytes magic, 1 byte frame version, 4 bytes length (big-endian), then a JSON document
`{"kind": ..., "body": ...}` that is validated against the message's dataclass. Unknown fields are
ignored, so a newer peer may say more; a wrong type is a violation.
"""

import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias, get_args

import msgspec

from netloader.fsm.events import PeerEvent, Violated
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description, Lane, Message, Offer

Spoken: TypeAlias = Message | Lane
Heard: TypeAlias = PeerEvent | Lane

MAGIC = b"NETL"
FRAME_VERSION = 1
HEADER = struct.Struct(">4sBI")
TLS_HANDSHAKE = b"\x16"
"""The first byte of a TLS connection (RFC 8446, section 5.1)."""
PREFIX = MAGIC + bytes([FRAME_VERSION])

_KINDS: dict[str, type[Spoken]] = {
    kind.__name__.lower(): kind for kind in (*get_args(Message), Lane)
}
_BODIES = {name: msgspec.json.Decoder(kind) for name, kind in _KINDS.items()}
_ENCODER = msgspec.json.Encoder()

TENSORS_PER_CALL = 1000
"""Tensors encoded per call. One call holds the interpreter lock until it ends, and the threads of
the engine wait: 200,000 tensors at once take 120 ms, 1000 take half a millisecond."""


class _Envelope(msgspec.Struct):
    kind: str
    body: msgspec.Raw


_ENVELOPES = msgspec.json.Decoder(_Envelope)


def encode(message: Spoken) -> bytes:
    """One whole frame. A lone surrogate, which JSON cannot carry, is sent as its escape."""
    try:
        encoded = _body(message)
    except UnicodeEncodeError:
        encoded = _body(sendable(message))
    kind, body = type(message).__name__.lower(), msgspec.Raw(encoded)
    document = _ENCODER.encode(_Envelope(kind, body))
    return b"".join((HEADER.pack(MAGIC, FRAME_VERSION, len(document)), document))


def sendable(value: Any) -> Any:
    r"""`value` with the lone surrogates of all its texts replaced by their escapes (`\udcff`).

    File names and arguments that are not UTF-8 come with them (PEP 383). Dataclasses, mappings and
    tuples are copied with their texts replaced; other values are returned unchanged.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {sendable(key): sendable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(sendable, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: sendable(getattr(value, f.name)) for f in fields(value)})
    return value


def _body(message: Spoken) -> bytes:
    if not isinstance(message, Offer | Description) or message.manifest is None:
        return _ENCODER.encode(message)
    parts: dict[str, Any] = {f.name: getattr(message, f.name) for f in fields(message)}
    tensors = msgspec.Raw(_tensors(message.manifest))
    parts["manifest"] = {"tensors": tensors, "values": message.manifest.values}
    return _ENCODER.encode(parts)


def _tensors(manifest: Manifest) -> bytes:
    tensors = manifest.tensors
    starts = range(0, len(tensors), TENSORS_PER_CALL)
    lists = (_ENCODER.encode(tensors[start : start + TENSORS_PER_CALL]) for start in starts)
    return b"[" + b",".join(encoded[1:-1] for encoded in lists) + b"]"


class Decoder:
    """Bytes in, messages out. After a violation everything further is discarded.

    `limit` is the largest document in bytes; it may be changed between two calls, because a peer
    that has proven itself may send a manifest.
    """

    __slots__ = ("_buffer", "_dead", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._dead = False

    @property
    def buffered(self) -> int:
        """Bytes held back because their frame is not whole yet."""
        return len(self._buffer)

    @property
    def wanted(self) -> int:
        """Bytes missing from the current frame: a reader of just these takes none of a lane."""
        if self._dead:  # no lane can follow; header by header, a peer that talks on costs a second
            return HEADER.size + self.limit
        have = len(self._buffer)
        if have < HEADER.size:
            return HEADER.size - have
        return HEADER.size + int(HEADER.unpack_from(self._buffer)[2]) - have

    def receive(self, data: bytes) -> None:
        """Take bytes; `next` gives the messages that they complete."""
        if not self._dead:
            self._buffer += data

    def next(self) -> Heard | None:
        """The next message, a `Violated` where the bytes are none, or None: more are needed."""
        heard = None if self._dead else self._next()
        if isinstance(heard, Violated):
            self.stop()
        return heard

    def stop(self) -> None:
        """Discard what is held, and everything further."""
        self._dead = True
        self._buffer.clear()

    def feed(self, data: bytes) -> list[Heard]:
        """Take bytes; answer with every message they complete, and a `Violated` at a bad one."""
        self.receive(data)
        return list(iter(self.next, None))

    def _next(self) -> Heard | None:
        start = bytes(self._buffer[: len(PREFIX)])
        if not PREFIX.startswith(start):
            return Violated(_foreign(start))
        if len(self._buffer) < HEADER.size:
            return None
        _, _, length = HEADER.unpack_from(self._buffer)
        if length > self.limit:
            return Violated(f"a frame of {length} bytes where {self.limit} are allowed")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        document = bytes(memoryview(self._buffer)[HEADER.size : end])
        del self._buffer[:end]
        return _read(document)


def _foreign(start: bytes) -> str:
    if start[: len(MAGIC)] == MAGIC:
        return f"frame version {start[-1]}, this side reads {FRAME_VERSION}"
    if start[:1] == TLS_HANDSHAKE:
        return "a TLS handshake, and this side has no TLS; set TLS_CERT and TLS_KEY here"
    return "bytes of another protocol"


def _read(document: bytes) -> Heard:
    try:
        envelope = _ENVELOPES.decode(document)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Violated("a frame that is no message")
    body = _BODIES.get(envelope.kind)
    if body is None:
        return Violated("a message of an unknown kind")
    try:
        heard: Heard = body.decode(envelope.body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Violated(f"a {envelope.kind} with a field missing or of a wrong type")
    return heard
