"""A plain TCP socket: what the machine's loopback gives to the simplest program."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.sender import HOST, Sender, Stage
from benchmarks.target import Target
from benchmarks.workload import KIB, MIB, views_of
from netloader.io.memory import memory_of

SEND: Final = MIB
"""Bytes per `sendall`. Measured in GiB/s: 1.5 for 256 KiB, 2.9 for 1 MiB, 2.4 for 4 MiB, 1.5 for
everything at once (the kernel's buffers then fall out of the cache)."""
RECEIVE: Final = 256 * KIB
"""Bytes per receive; from 64 KiB to 1 MiB there is little difference."""
CONGESTION: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")
AVAILABLE: Final = CONGESTION.with_name("tcp_available_congestion_control")


def system_congestion() -> str:
    """The congestion control that a socket has when nobody chooses."""
    return CONGESTION.read_text().strip()


class PlainSocket:
    """One connection, 1 MiB a call, into one piece of memory."""

    kind: str = "network"
    workloads: tuple[str, ...] = ("large", "small", "tiny")

    def __init__(self, congestion: str = "") -> None:
        self._congestion = congestion
        self.name = f"plain socket, {congestion}" if congestion else "plain socket"

    def obstacle(self) -> str:
        """Why it cannot take part, or ''."""
        if not self._congestion:
            return ""
        if self._congestion == system_congestion():
            return "it is this system's congestion control: see plain socket"
        known = AVAILABLE.read_text().split()
        return "" if self._congestion in known else "the kernel has no such congestion control"

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """The returned function connects, and receives until the last byte."""
        port = sender.do(offer, self._congestion)
        memory = memory_of(target.block())

        def receive() -> None:
            with socket.create_connection((HOST, port)) as connection:
                done = 0
                while done < len(memory):
                    step = memory[done : done + RECEIVE]
                    done += connection.recv_into(step, 0, socket.MSG_WAITALL)

        return receive


def offer(stage: Stage, congestion: str) -> int:
    """Send everything to whoever connects to the port that is returned."""
    server = stage.once(("plain", congestion), lambda: _listen(stage, congestion))
    return int(server.getsockname()[1])


def _listen(stage: Stage, congestion: str) -> socket.socket:
    server = socket.create_server((HOST, 0))
    if congestion:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    views = views_of(stage.model)

    def work() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed
                return
            with connection:
                for view in views:
                    for start in range(0, len(view), SEND):
                        connection.sendall(view[start : start + SEND])

    threading.Thread(target=work, daemon=True).start()
    return server
