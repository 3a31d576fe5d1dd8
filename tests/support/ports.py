"""Ports for tests that have to name one."""

import contextlib
import random
import socket

NAMED_PORTS = range(10_000, 30_000)
"""Below those that Linux gives to whoever asks for any, as an engine does dozens of times."""


def free_port() -> int:
    """A port on which nobody listens, and which the kernel gives to nobody who asks for any."""
    while True:
        port = random.choice(NAMED_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
