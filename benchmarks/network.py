"""A simulated network: flows over links of limited rate, shared max-min fairly.

Every flow gets as much as the others on its tightest link, and what those cannot use. That is what
long-lived TCP flows of equal delay come near to; loss, slow start and queues are not modelled.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

CLOSE: Final = 1e-9


class Clock:
    """Virtual time, and what is to happen then."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Have `act` called at that time; calls for one time in the order in which they came."""
        heappush(self._queue, (max(when, self.now), next(self._numbers), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Have `act` called in so many seconds."""
        self.at(self.now + seconds, act)

    def run(self, over: Callable[[], bool]) -> None:
        """Let time pass until `over`, or until nothing is left to happen."""
        while self._queue and not over():
            self.now, _, act = heappop(self._queue)
            act()


@dataclass(eq=False)
class Link:
    """A direction of a cable; `rate` in bytes a second."""

    rate: float
    flows: "set[Flow]" = field(default_factory=set)
    carried: float = 0.0
    """Bytes."""

    @property
    def binds(self) -> bool:
        """Whether its flows could use more than it has."""
        return sum(flow.most for flow in self.flows) > self.rate * (1 + CLOSE)


@dataclass(eq=False)
class Flow:
    """Parcels of bytes that follow each other over some links."""

    links: tuple[Link, ...]
    parcels: list[int]
    """Bytes of each that is still to come, the first one included, in reverse order."""
    arrived: Callable[[], None]
    """Called after each parcel."""
    left: float = 0.0
    """Bytes of the present parcel that are still to come, at `since`."""
    rate: float = 0.0
    since: float = 0.0
    version: int = 0

    @property
    def most(self) -> float:
        """The rate that it can have at most."""
        return min(link.rate for link in self.links)


class Network:
    """All flows.

    Rates are computed again at most every `quantum_s`, because with a thousand flows that takes
    longer than all else. Flows that share no link which binds them have their rate at once.
    """

    def __init__(self, clock: Clock, quantum_s: float = 0.0) -> None:
        self._clock = clock
        self._quantum_s = quantum_s
        self._changed: set[Link] = set()
        self._due = False

    def start(self, flow: Flow) -> None:
        """Begin to send."""
        flow.left, flow.since = flow.parcels[-1], self._clock.now
        for link in flow.links:
            link.flows.add(flow)
        self._note(flow)
        if not any(link.binds for link in flow.links):
            self._set(flow, flow.most)

    def stop(self, flow: Flow) -> None:
        """Send nothing more of it."""
        flow.version += 1
        self._note(flow)
        for link in flow.links:
            link.flows.discard(flow)

    def _note(self, flow: Flow) -> None:
        bound = [link for link in flow.links if link.binds]
        if not bound:
            return
        self._changed.update(bound)
        if not self._due:
            self._due = True
            self._clock.after(self._quantum_s, self._allocate)

    def _set(self, flow: Flow, rate: float) -> None:
        now = self._clock.now
        if flow.rate:
            flow.left = max(flow.left - flow.rate * (now - flow.since), 0.0)
        flow.since = now
        flow.rate = rate
        flow.version += 1
        if rate:
            version = flow.version
            self._clock.after(flow.left / rate, lambda: self._arrive(flow, version))

    def _arrive(self, flow: Flow, version: int) -> None:
        if flow.version != version:
            return
        nbytes = flow.parcels.pop()
        for link in flow.links:
            link.carried += nbytes
        if flow.parcels:
            flow.left, flow.since = flow.parcels[-1], self._clock.now
            self._clock.after(flow.left / flow.rate, lambda: self._arrive(flow, version))
        else:
            self.stop(flow)
        flow.arrived()

    def _allocate(self) -> None:
        """Compute the rates of all flows that share a link, directly or not, with a changed one."""
        self._due = False
        changed, self._changed = self._changed, set()
        flows = _connected(changed)
        for flow, rate in fair(flows).items():
            if abs(rate - flow.rate) > CLOSE * rate:
                self._set(flow, rate)


def _connected(links: Iterable[Link]) -> "dict[Flow, None]":
    found: dict[Flow, None] = {}
    todo = list(links)
    seen = set(todo)
    while todo:
        for flow in todo.pop().flows:
            if flow in found:
                continue
            found[flow] = None
            for link in flow.links:
                if link not in seen:
                    seen.add(link)
                    if link.binds:
                        todo.append(link)
    return found


def fair(flows: Iterable[Flow]) -> dict[Flow, float]:
    """The max-min-fair rate of each flow: fill the tightest link first, then the next."""
    rates: dict[Flow, float] = {}
    open_: dict[Link, set[Flow]] = {}
    for flow in flows:
        for link in flow.links:
            open_.setdefault(link, set()).add(flow)
    room = {link: link.rate for link in open_}
    while open_:
        tightest, share = None, math.inf
        for link, members in open_.items():
            each = room[link] / len(members)
            if each < share:
                tightest, share = link, each
        if tightest is None:
            break
        for flow in tuple(open_[tightest]):
            rates[flow] = share
            for link in flow.links:
                members = open_.get(link, set())
                members.discard(flow)
                room[link] -= share
                if not members:
                    open_.pop(link, None)
    return rates
