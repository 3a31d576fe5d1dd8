"""Bytes in, bytes out: the protocol without a socket, a thread, a clock or a tensor."""

from netloader.wire.frames import Decoder, Heard, Spoken, encode, sendable

__all__ = ["Decoder", "Heard", "Spoken", "encode", "sendable"]
