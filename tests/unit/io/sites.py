"""Servers of a model and a client that fills from several of them, for the tests of that."""

import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from netloader import Endpoint
from netloader.fsm.reasons import Reason
from netloader.io import Outcome
from tests.support.relay import Fault, Relay
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    MIB,
    asking,
    contents,
    eventually,
    module_of,
    our_threads,
    random,
    sealed,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Lines = list[dict[str, Any]]
SEGMENT = 64 * KIB
STALL_S = 30.0
PATIENT = replace(FAST, stall_s=STALL_S, transfer_base_s=60)
WELL_BEFORE_S = STALL_S / 3


def model(seed: int) -> nn.Module:
    """Five MiB in 80 segments, of which the last 16 are one tensor that has to be staged."""
    return module_of(
        big=random(MIB, seed=seed),
        norm=random(1000, seed=seed + 1),
        holes=random(512, 1024, seed=seed + 2)[:, ::2],
    )


def total_of(module: nn.Module) -> int:
    return sum(map(len, contents(module).values()))


class Site:
    """Servers of a model, and a client that holds its first segment until something is so.

    So no source can send everything before the others have begun.
    """

    def __init__(self, stack: ExitStack, captured: Lines) -> None:
        self.stack = stack
        self.lines = captured
        self.source, self.target = model(1), model(50)
        self.begun: Callable[[], object] = lambda: self.count("netloader.transfer.started") > 1
        self.then: Callable[[], object] = lambda: None
        self._held = threading.Event()

    def server(self, seed: int = 1, **options: Any) -> Endpoint:
        server = self.stack.enter_context(serving(model(seed), **options))
        return sealed(server).endpoint

    def relay(self, fault: Fault, at: int) -> Relay:
        return self.stack.enter_context(Relay(self.server(), fault, at))

    def lines_of(self, event: str, side: str = "client") -> Lines:
        said = [line for line in self.lines if line["event"] == event]
        return [line for line in said if line.get("netloader.side", side) == side]

    def count(self, event: str) -> int:
        """How often the client has said this."""
        return len(self.lines_of(event))

    def sent(self) -> list[int]:
        """Bytes that each session of a server has sent, for those that are over."""
        closed = self.lines_of("netloader.session.closed", "server")
        return [line["netloader.transfer.bytes"] for line in closed]

    def report(self, done: int, total: int) -> None:
        if not self._held.is_set():
            self._held.set()
            assert eventually(self.begun), "the other sources have not begun"
            self.then()

    def fill(self, *sources: Endpoint, transport: str = "tcp", **options: Any) -> Outcome:
        chosen = {"parallel": len(sources), "lanes": 1, "deadlines": PATIENT, **options}
        asked = asking(transport, report=self.report, **chosen)
        return fill(self.target, sources, IDENTITY, asked)

    def check(self, outcome: Outcome) -> None:
        """Everything is there, and nothing was received twice."""
        assert outcome.ok, outcome.history()
        assert contents(self.target) == contents(self.source)
        assert sum(attempt.nbytes for attempt in outcome.attempts) == total_of(self.source)
        assert our_threads() <= {"netloader-listener", "netloader-worker", "netloader-audit"}


def by_source(outcome: Outcome) -> dict[Endpoint, int]:
    """Bytes that each source has brought."""
    found: dict[Endpoint, int] = {}
    for attempt in outcome.attempts:
        found[attempt.source] = found.get(attempt.source, 0) + attempt.nbytes
    return found


def reasons(outcome: Outcome, source: Endpoint) -> list[Reason]:
    return [attempt.reason for attempt in outcome.attempts if attempt.source == source]
