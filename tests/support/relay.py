"""A wire between client and server that can be cut, held or garbled at an exact byte."""

import contextlib
import socket
import threading
from enum import Enum
from typing import Self

from netloader.config import Endpoint
from netloader.fsm.messages import Lane
from netloader.wire.frames import Decoder, Heard


class Fault(Enum):
    """What happens to the bytes of the data lanes."""

    HOLD = "no byte moves any more, connections stay open"
    GARBLE = "one byte is changed, everything goes on"


class Relay:
    """Passes connections on to one server; the fault strikes after `at` bytes of weights.

    `cut` closes every connection, at any time.
    """

    def __init__(self, target: Endpoint, fault: Fault, at: int) -> None:
        self._target = target
        self._fault = fault
        self._left = at
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint("127.0.0.1", self._listener.getsockname()[1])
        self._over = threading.Event()
        self._start(self._accept)

    def _start(self, target: object, *args: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._open, client)

    def _open(self, client: socket.socket) -> None:
        server = socket.create_connection((self._target.host, self._target.port))
        with self._lock:
            self._sockets += (client, server)
        decoder = Decoder(1 << 20)
        heard: list[Heard] = []
        first = b""
        while not heard:
            data = client.recv(decoder.wanted)
            if not data:
                self._shut(client, server)
                return
            first += data
            heard = decoder.feed(data)
        server.sendall(first)
        lane = isinstance(heard[0], Lane)
        self._start(self._pump, client, server, False)
        self._pump(server, client, lane)

    def _pump(self, source: socket.socket, sink: socket.socket, weights: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(self._through(data) if weights else data)
                if weights and self._left <= 0 and self._fault is Fault.HOLD:
                    self._over.wait()
        self._shut(source, sink)

    def _through(self, data: bytes) -> bytes:
        with self._lock:
            before, self._left = self._left, self._left - len(data)
        if before >= len(data):
            return data
        match self._fault:
            case Fault.GARBLE if before >= 0:
                return data[:before] + bytes([data[before] ^ 1]) + data[before + 1 :]
            case Fault.GARBLE:
                return data
            case Fault.HOLD:
                return data[: max(0, before)]

    def _shut(self, *sockets: socket.socket) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Close every connection and the port."""
        self._over.set()
        self._shut(self._listener)
        with self._lock:
            self._shut(*self._sockets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()
