"""Which of many sources can be connected to: a registry may name thousands that are gone."""

import errno
import selectors
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from netloader.config import Endpoint
from netloader.io.clock import monotonic
from netloader.io.forks import INHERITANCE

AT_ONCE = 64
"""Connections that are tried at the same time."""


def reachable(sources: Sequence[Endpoint], enough: int, timeout_s: float) -> tuple[Endpoint, ...]:
    """The sources that accept a connection within `timeout_s`, in their order.

    Looks for `enough` of them, from the first one on. Their hosts are addresses, so nothing is
    looked up. Blocks.
    """
    end = monotonic() + timeout_s
    accepted: set[Endpoint] = set()
    for begin in range(0, len(sources), AT_ONCE):
        if len(accepted) >= enough or monotonic() >= end:
            break
        accepted |= _accepting(sources[begin : begin + AT_ONCE], end)
    return tuple(source for source in sources if source in accepted)[:enough]


def _accepting(sources: Sequence[Endpoint], end: float) -> set[Endpoint]:
    accepted = set[Endpoint]()
    with ExitStack() as stack:
        with INHERITANCE.atomic():
            selector = INHERITANCE.note(selectors.DefaultSelector())
        stack.callback(INHERITANCE.close, selector)
        for source in sources:
            sock = _begin(source)
            if sock is not None:
                stack.callback(INHERITANCE.close, sock)
                selector.register(sock, selectors.EVENT_WRITE, source)
        while selector.get_map() and (left := end - monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                if isinstance(key.fileobj, socket.socket) and not _error(key.fileobj):
                    accepted.add(key.data)
    return accepted


def _begin(source: Endpoint) -> socket.socket | None:
    """A connection that is being made; None when it cannot even begin."""
    family = socket.AF_INET6 if ":" in source.host else socket.AF_INET
    try:
        with INHERITANCE.atomic():
            sock = INHERITANCE.note(socket.socket(family, socket.SOCK_STREAM))
    except OSError:
        return None
    sock.setblocking(False)
    if sock.connect_ex((source.host, source.port)) in (0, errno.EINPROGRESS, errno.EINTR):
        return sock
    INHERITANCE.close(sock)
    return None


def _error(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
