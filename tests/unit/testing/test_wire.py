"""Simulated connections behave as TCP does, in what a link can see."""

import socket

import pytest

from netloader.testing.wire import Pipe, Plug


def plugs(window: int = 100) -> tuple[Plug, Plug]:
    """Two ends of one connection."""
    there, back = Pipe(window), Pipe(window)
    return Plug(back, there), Plug(there, back)


def test_bytes_come_in_order_and_in_chunks() -> None:
    near, far = plugs()
    assert near.send(b"abcdef") == 6
    far.chunk = 4

    assert (far.recv(2), far.recv(100)) == (b"ab", b"cdef")
    with pytest.raises(BlockingIOError):
        far.recv(1)


def test_a_full_window_takes_part_and_then_blocks() -> None:
    near, far = plugs(window=4)

    assert near.send(b"abcdef") == 4
    assert not near.outward.writable
    with pytest.raises(BlockingIOError):
        near.send(b"ef")
    far.recv(3)
    assert near.send(b"ef") == 2


def test_an_orderly_end_comes_after_the_bytes() -> None:
    near, far = plugs()
    near.send(b"bye")
    near.shutdown(socket.SHUT_WR)

    assert (far.recv(10), far.recv(10)) == (b"bye", b"")
    with pytest.raises(BrokenPipeError):
        near.send(b"more")
    assert far.send(b"still heard") == 11


def test_a_close_with_unread_bytes_resets_and_discards_what_was_sent() -> None:
    near, far = plugs()
    far.send(b"unread")
    near.send(b"last words")
    near.close()

    with pytest.raises(ConnectionResetError):
        far.recv(10)


def test_writing_to_one_who_has_closed_breaks_the_connection() -> None:
    near, far = plugs()
    near.close()
    assert far.recv(10) == b""

    with pytest.raises(BrokenPipeError):
        far.send(b"anybody there?")


def test_what_stalls_is_not_lost() -> None:
    near, far = plugs()
    near.send(b"slow")
    far.inward.stalled = True
    with pytest.raises(BlockingIOError):
        far.recv(10)
    far.inward.stalled = False

    assert far.recv(10) == b"slow"


def test_only_what_is_simulated_can_be_shut_down() -> None:
    with pytest.raises(NotImplementedError):
        plugs()[0].shutdown(socket.SHUT_RD)
