"""Servers' sockets, and the thread that serves one. `close` frees everything."""

import contextlib
import os
import socket
import threading
from functools import partial

from netloader.config import Endpoint
from netloader.errors import cause
from netloader.io.catalog import Catalog
from netloader.io.driver import Loop
from netloader.io.forks import INHERITANCE
from netloader.io.publishing import ServerOptions
from netloader.io.reception import CLOSE_S, Reception
from netloader.log import Logger, emit

BACKLOG = 1024
"""Connections that the kernel queues (at most net.core.somaxconn). Next to a busy Python thread we
get the interpreter lock every 5 ms at best, so a burst of connections waits in this queue. What
does not fit is dropped; a client would see a dropped lane as open, but idle for seconds."""

ANYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - to be recognized, not to be bound
"""Hosts that mean every address of this host. They can be listened on, but not connected to."""
EVERY_ADDRESS = "every address"
"""How the log shows them."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; an empty host means every address, IPv4 and IPv6.

    With port 0 the kernel picks a free port as it binds, so no other process can take it first.

    Raises:
        OSError: the port is busy or the address is not this host's.
    """
    every = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if every or ":" in host else socket.AF_INET
    try:
        with INHERITANCE.atomic():
            sock = socket.create_server(
                (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=every
            )
            return INHERITANCE.note(sock)
    except OSError as error:  # to which create_server has added where
        why = cause(error).partition(" (while attempting ")[0]
        raise OSError(error.errno, why) from error


class Listener:
    """Serves what is in a catalog on one socket, on a thread of its own.

    Raises:
        OSError: the process is out of file descriptors. The socket is closed then.
        RuntimeError: it can start no more threads. The socket is closed then.
    """

    def __init__(self, sock: socket.socket, catalog: Catalog, options: ServerOptions) -> None:
        self.endpoint = endpoint_of(sock)
        self._logger = logger = options.logger
        self._process = os.getpid()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="netloader-listener", daemon=True)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            self._loop = Loop(partial(trouble, logger))
            undo.callback(self._loop.close)
            self._reception = Reception(self._loop, sock, catalog, options)
            undo.callback(self._reception.close)
            self._thread.start()
            undo.pop_all()
        tell(logger, "netloader.listener.started", self.endpoint)

    def add(self, sock: socket.socket) -> None:
        """Accept at one more socket, until `remove` or `close`; from any thread."""
        self._loop.post(partial(self._reception.add, sock))

    def remove(self, sock: socket.socket) -> None:
        """Accept no more at a socket that was added; from any thread."""
        self._loop.post(partial(self._reception.remove, sock))

    def close(self) -> None:
        """End every session and free the port, the threads and the catalog. Idempotent.

        Does nothing in a child that was forked from the server's process: the port and the
        connections belong to the parent.
        """
        if not self._closing and os.getpid() == self._process:
            self._closing = True
            self._loop.post(self._reception.stop)
            self._thread.join(CLOSE_S + 1)
            tell(self._logger, "netloader.listener.stopped", self.endpoint)

    def _run(self) -> None:
        self._loop.run(lambda: self._reception.over)
        self._reception.close()
        self._loop.close()


def endpoint_of(sock: socket.socket) -> Endpoint:
    """What a listening socket is bound to."""
    host, port = sock.getsockname()[:2]
    return Endpoint(host, port)


def trouble(logger: Logger, error: Exception) -> None:
    """Log a bug in netloader. An error in one connection does not stop the others."""
    emit(logger, "netloader.driver.error", exc_info=error)


def tell(logger: Logger, event: str, endpoint: Endpoint) -> None:
    """Log what happens to a listening socket."""
    fields = {
        "network.local.address": EVERY_ADDRESS if endpoint.host in ANYWHERE else endpoint.host,
        "network.local.port": endpoint.port,
    }
    emit(logger, event, fields)
