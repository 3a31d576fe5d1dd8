"""An attacker on the path: passes everything on, except for what a test has it rewrite."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self, TypeVar

from netloader.config import Endpoint
from netloader.fsm.events import Violated
from netloader.fsm.messages import Lane
from netloader.wire.frames import Decoder, Heard, Spoken, encode
from tests.unit.io.helpers import MIB, SOON_S

Rewrite = Callable[[Spoken], Spoken]
M = TypeVar("M", bound=Spoken)


def only(kind: type[M], change: Callable[[M], Spoken]) -> Rewrite:
    """Rewrite the messages of one kind."""
    return lambda said: change(said) if isinstance(said, kind) else said


class OnPath:
    """A relay to one server.

    `to_client` and `to_server` rewrite the messages of a direction. `weights` are the bytes that
    the client receives over its only lane in the place of the server's; None passes those on.
    """

    def __init__(
        self,
        target: Endpoint,
        to_client: Rewrite = lambda said: said,
        to_server: Rewrite = lambda said: said,
        weights: bytes | None = None,
    ) -> None:
        self._target = target
        self._to_client = to_client
        self._to_server = to_server
        self._weights = weights
        self.heard: list[Spoken] = []
        """What was passed on, in both directions, as it was said."""
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint("127.0.0.1", self._listener.getsockname()[1])
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._target.host, self._target.port))
                self._sockets += (client, server)
                self._start(self._messages, client, server, self._to_server)

    def _messages(self, source: socket.socket, sink: socket.socket, rewrite: Rewrite) -> None:
        """Pass messages on; what follows the first words of a lane is raw."""
        decoder, begun = Decoder(64 * MIB), rewrite is not self._to_server
        with contextlib.suppress(OSError):
            while data := source.recv(decoder.wanted):
                for said in decoder.feed(data):
                    sink.sendall(encode(rewrite(self._note(said))))
                    if not begun:
                        lane = isinstance(said, Lane)
                        back = self._raw if lane else self._messages
                        self._start(back, sink, source, *(() if lane else (self._to_client,)))
                        begun = True
                        if lane:
                            self._raw(source, sink)
                            return
        self._shut(source, sink)

    def _note(self, said: Heard) -> Spoken:
        assert not isinstance(said, Violated)
        self.heard.append(said)
        return said

    def _raw(self, source: socket.socket, sink: socket.socket) -> None:
        at = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                changed = self._weights and self._weights[at : at + len(data)]
                sink.sendall(changed or data)
                at += len(data)
        self._shut(source, sink)

    def _shut(self, *sockets: socket.socket) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shut(self._listener, *self._sockets)
        self._listener.close()
        for thread in self._threads:
            thread.join(SOON_S)
        for sock in self._sockets:
            sock.close()
