"""Sockets and bytes that a client or a server must cope with."""

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from netloader.config import Endpoint
from netloader.wire.frames import FRAME_VERSION, HEADER, MAGIC


@contextlib.contextmanager
def blackhole(host: str, port: int = 0) -> Iterator[Endpoint]:
    """An address that swallows packets: its backlog is full, so the kernel drops every SYN."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        here = listener.getsockname()
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(here)
        with pytest.raises(TimeoutError):
            socket.create_connection(here, timeout=0.5)
        yield Endpoint(host, here[1])


def reset(sock: socket.socket) -> None:
    """Close a connection with a reset, as the kernel does for a process that was killed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def frame_of(length: int, document: bytes) -> bytes:
    """A frame whose header names a length that need not be true."""
    return HEADER.pack(MAGIC, FRAME_VERSION, length) + document
