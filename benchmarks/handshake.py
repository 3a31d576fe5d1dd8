"""Handshake, and the call of `fill` to the first verified segment, by the number of tensors."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.sender import HOST, Sender, Stage, sending
from benchmarks.workload import IDENTITY, LARGE, Many
from netloader import ClientOptions, Endpoint, Server, ServerOptions, State, fill, serve

COUNTS: Final = (300, 20_000, 100_000)
ELEMENTS: Final = 512
"""1 KiB a tensor: the bytes take little beside the tensors."""
SEALED_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Handshake:
    """Milliseconds of each round, by what had happened then."""

    tensors: int
    handshake_ms: list[float]
    """From the connection to the request for the first bytes."""
    first_segment_ms: list[float]
    """The first segment was verified."""
    done_ms: list[float]
    """`fill` returned."""


def shake_hands(rounds: int, say: Callable[[str], None]) -> list[Handshake]:
    """Measure every count."""
    found = []
    with sending(LARGE) as sender:
        for count in COUNTS:
            say(f"handshake, {count:,} tensors")
            found.append(_measure(sender, count, rounds))
    return found


def _measure(sender: Sender, count: int, rounds: int) -> Handshake:
    port = sender.do(offer, count)
    model = Many(count, ELEMENTS)
    times = [_once(model, port) for _ in range(rounds + 1)][1:]
    handshake, first, done = zip(*times, strict=True)
    return Handshake(count, list(handshake), list(first), list(done))


def _once(model: Any, port: int) -> tuple[float, float, float]:
    reached: list[float] = []

    def report(done: int, total: int) -> None:
        del total
        if done and not reached:
            reached.append(time.perf_counter())

    began = time.perf_counter()
    outcome = fill(
        model, [Endpoint(HOST, port)], IDENTITY, ClientOptions(transports=("tcp",), report=report)
    )
    ended = time.perf_counter()
    if not outcome.ok:
        raise RuntimeError(outcome.history())
    spent = outcome.attempts[0].seconds
    handshake = spent.get(State.HANDSHAKE, 0.0) + spent.get(State.VALIDATE, 0.0)
    return handshake * 1000, (reached[0] - began) * 1000, (ended - began) * 1000


def offer(stage: Stage, count: int) -> int:
    """The port of a server of so many tensors."""

    def make() -> Server:
        model = stage.once(("model", count), lambda: Many(count, ELEMENTS))
        server = serve(model, IDENTITY, HOST, options=ServerOptions(max_clients=1))
        if not server.wait_ready(SEALED_S):
            raise RuntimeError("the digests were not ready in time")
        return server

    return stage.once(("handshake", count), make).endpoint.port
