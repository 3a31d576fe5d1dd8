"""What a registry that fails costs a start: `python -m benchmarks.registries`.

Real servers of Redis and etcd. A *start* is what netloader adds to one: the look for sources, then
the transfer of 16 MiB from a source that was found, or none. Its stated deadline is the time-out of
the look (`DISCOVERY_TIMEOUT_S`, 5 s) and a second to try what was found.
"""

import base64
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from benchmarks.herd import IDENTITY, KEY, READY_S, weights
from netloader.config import Deadlines, Endpoint
from netloader.discovery.base import Candidate
from netloader.discovery.entries import render
from netloader.discovery.http import ask
from netloader.discovery.lookup import PROBE_S, Lookup
from netloader.discovery.urls import registry_of
from netloader.io import ClientOptions, ServerOptions, fill, serve
from netloader.io.clock import monotonic
from netloader.log import get_logger
from tests.support.registries import Program, etcd_server, mute, redis_server
from tests.unit.io.helpers import closed_port

TIMEOUT_S: Final = 5.0
STATED_S: Final = TIMEOUT_S + PROBE_S
STALE: Final = 2000
LEASE_S: Final = 600
LATE_S: Final = 2.0
PATIENT: Final = Deadlines(min_rate_bytes_per_s=1 << 20)
SLOW_SEED: Final = ServerOptions(
    transports=("tcp",), max_clients=2, max_bandwidth="12MB", deadlines=PATIENT
)
"""A transfer takes more than a second, so that the registry can die in the middle of it."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A kind of registry: where it is, its process, and how to put bytes there."""

    scheme: str
    where: Endpoint
    program: Program
    put: Callable[[int, bytes], None]

    def url(self, where: Endpoint | None = None) -> str:
        """As in `SOURCE`."""
        return f"{self.scheme}://{where or self.where}/herd"


@dataclass(frozen=True, slots=True)
class Cost:
    """One case: seconds of the look, what it found, seconds until the weights were there."""

    case: str
    look_s: float
    sources: int
    fill_s: float | None
    problem: str


def start(case: str, url: str, between: Callable[[], object] = lambda: None) -> Cost:
    """Look, and fill from what was found; `between` is called when the first bytes are there."""
    begun = monotonic()
    lookup = Lookup([registry_of(url)], KEY, "", TIMEOUT_S, get_logger("bench"))
    looked = lookup.look()
    look_s = monotonic() - begun
    problem = "; ".join(looked.problems).partition(": ")[2]
    if not looked.sources:
        return Cost(case, look_s, 0, None, problem)
    mine, reached = weights(100), threading.Event()

    def report(done: int, total: int) -> None:
        del total
        if done and not reached.is_set():
            reached.set()
            between()

    options = ClientOptions(
        transports=("tcp",), lanes=1, deadlines=PATIENT, feed=lookup, report=report
    )
    outcome = fill(mine, looked.sources, IDENTITY, options)
    if not outcome.ok:
        raise RuntimeError(outcome.history())
    return Cost(case, look_s, len(looked.sources), monotonic() - begun, problem)


@contextmanager
def late(where: Endpoint) -> Iterator[Endpoint]:
    """A place that passes every byte on, two seconds after a connection was made."""

    def pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
        except OSError:
            pass

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            time.sleep(LATE_S)
            far = socket.create_connection((where.host, where.port))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield Endpoint(*listener.getsockname()[:2])


def costs(registry: Registry, seed: Endpoint) -> Iterator[Cost]:
    """Every case; the registry is dead afterwards."""
    own = registry_of(registry.url())
    yield start("no server published", registry.url())
    own.put(KEY, Candidate(seed), LEASE_S, READY_S)
    yield start("one source", registry.url())
    yield start("down at the start", registry.url(closed_port()))
    with mute() as silent:
        yield start("accepts, never answers", registry.url(silent))
    with late(registry.where) as slow:
        yield start(f"answers after {LATE_S:g} s", registry.url(slow))
    registry.put(200, b"\xff garbage \x00" * 20)
    yield start("200 entries of garbage, one source", registry.url())
    registry.put(STALE, render(Candidate(closed_port())))
    own.put(KEY, Candidate(seed), LEASE_S + 5, READY_S)
    yield start(f"{STALE:,} stale entries, one source", registry.url())
    yield start("killed in the middle of the transfer", registry.url(), registry.program.kill)


@contextmanager
def redis_registry() -> Iterator[Registry]:
    """A real Redis."""
    with redis_server() as (where, program):

        def put(count: int, data: bytes) -> None:
            base = f"herd:{{{KEY.model}:{KEY.digest}}}"
            with redis.Redis(where.host, where.port) as client:
                now = int(client.time()[0])
                names = [f"n{i}" for i in range(count)]
                client.zadd(f"{base}:leases", dict.fromkeys(names, now + LEASE_S))
                client.hset(f"{base}:entries", mapping=dict.fromkeys(names, data))

        yield Registry("redis", where, program, put)


@contextmanager
def etcd_registry() -> Iterator[Registry]:
    """A real etcd."""
    with tempfile.TemporaryDirectory() as folder, etcd_server(Path(folder)) as (where, program):

        def put(count: int, data: bytes) -> None:
            value = base64.b64encode(data).decode()
            names = [f"herd/{KEY.model}/{KEY.digest}/n{i}".encode() for i in range(count)]
            for begin in range(0, count, 100):
                puts = [
                    {"requestPut": {"key": base64.b64encode(name).decode(), "value": value}}
                    for name in names[begin : begin + 100]
                ]
                ask(where, "/v3/kv/txn", READY_S, {}, document={"success": puts})

        yield Registry("etcd", where, program, put)


def main() -> int:
    """Print a table; the exit status is 1 if a look took longer than is stated."""
    over = False
    print("| registry | case | look-up | sources | complete after | error |\n|" + " --- |" * 6)
    with serve(weights(1), IDENTITY, "127.0.0.1", options=SLOW_SEED) as seed:
        seed.wait_ready(READY_S)
        for kind in (redis_registry, etcd_registry):
            with kind() as registry:
                for cost in costs(registry, seed.endpoint):
                    filled = "" if cost.fill_s is None else f"{cost.fill_s:.2f} s"
                    over = over or cost.look_s > STATED_S
                    shown = (
                        f"| {registry.scheme} | {cost.case} | {cost.look_s:.2f} s | {cost.sources}"
                    )
                    print(f"{shown} | {filled} | {cost.problem} |", flush=True)
    print(f"stated: at most {STATED_S:g} s; {'exceeded' if over else 'kept'}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
