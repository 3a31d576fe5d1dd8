"""Health checks of the port: they connect, say nothing and go, and are no news."""

import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from netloader.wire.frames import encode
from tests.unit.io.helpers import Peer, eventually, hello, serving, zoo

pytestmark = pytest.mark.usefixtures("driver")
Lines = list[dict[str, Any]]
OPENED, CLOSED = "netloader.session.opened", "netloader.session.closed"


def close(sock: socket.socket) -> None:
    sock.close()


def close_half(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(100):
        pass


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def of_sessions(lines: Lines) -> Lines:
    return [line for line in lines if line["event"].startswith("netloader.session.")]


@pytest.mark.parametrize("go", [close, close_half, reset])
def test_a_probe_leaves_nothing_but_debug_lines(
    go: Callable[[socket.socket], None], captured: Lines
) -> None:
    with serving(zoo(1)) as server:
        for _ in range(3):
            with Peer.call(server.endpoint) as peer:
                go(peer.sock)
        assert eventually(lambda: [x["event"] for x in captured].count(CLOSED) == 3)

    found = of_sessions(captured)
    assert {line["severity"] for line in found} == {"DEBUG"}
    assert [line["event"] for line in found].count(OPENED) == 3


@pytest.mark.parametrize("words", [b"G", encode(hello())[:20], encode(hello())])
def test_who_said_something_before_it_went_is_news(words: bytes, captured: Lines) -> None:
    with serving(zoo(1)) as server:
        with Peer.call(server.endpoint) as peer:
            peer.sock.sendall(words)
            peer.sock.shutdown(socket.SHUT_WR)
            while peer.hear() is not None:
                pass
        assert eventually(lambda: CLOSED in [line["event"] for line in captured])

    (line,) = [line for line in captured if line["event"] == CLOSED]
    assert line["severity"] == "WARNING"
