"""Instances that start together, simulated: the real `Fetch`, `Directory` and `Referrals`.

What is played is what lies around them: the network (see `network`), the time that messages take,
and a server's places. As in `io`, a source that has no place for a client names others to it; an
instance serves each segment as soon as it is verified, and goes on serving when it has all.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from benchmarks.network import Clock, Flow, Link, Network
from netloader.config import Endpoint
from netloader.fsm.directory import Directory
from netloader.fsm.fetch import Fetch, FetchOptions
from netloader.fsm.fetch_events import (
    Available,
    Busy,
    Completed,
    Conclude,
    Dial,
    Drop,
    FetchEffect,
    FetchEvent,
    Finish,
    Offered,
    Request,
    Root,
    SegmentVerified,
    SourceEnded,
    SourcesFound,
)
from netloader.fsm.states import State
from netloader.fsm.terms import places
from netloader.io.referrals import Referrals
from netloader.io.worker import RETRY_AFTER_S

PORT: Final = 1
PATIENT: Final = FetchOptions(queue_s=1e6, stall_s=1e6)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated. Times in seconds, rates in bytes a second."""

    instances: int
    places: int = 1
    """Clients that the first server, and each instance, feeds at a time."""
    parallel: int = 1
    relay: bool = True
    segments: int = 256
    segment_bytes: int = 1 << 24
    rate: float = 1.25e9
    """Of each host, in each direction."""
    rack: int = 0
    """Hosts in a rack; 0: all at one switch."""
    uplink: float = 0.0
    """Rate of a rack, in each direction, to all others."""
    message_s: float = 0.0005
    """From one host to another, a message's handling included."""
    queue_s: float = 0.0
    """What a message waits for behind the data that its host sends."""
    spread_s: float = 0.05
    """Instances start within this time."""
    quantum_s: float = 0.0
    seed: int = 1
    mixed: bool = True
    """Whether instances start in any order, not rack by rack."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation found."""

    seconds: tuple[float, ...]
    """When each instance had all, in ascending order."""
    sent: tuple[int, ...]
    """Bytes that left each host; the first server is the first."""
    total: int
    """Bytes of the model."""

    @property
    def all_done(self) -> float:
        """When the last instance had all."""
        return self.seconds[-1]

    @property
    def sent_by_source(self) -> float:
        """Models that left the first server."""
        return self.sent[0] / self.total


@dataclass(eq=False)
class Session:
    """One client at one server."""

    client: "Instance"
    server: "Instance"
    key: int
    flow: Flow | None = None
    asked: list[int] = field(default_factory=list)
    open: bool = True


class Instance:
    """A host that serves what it has; and, but for the first server, a client."""

    def __init__(self, fleet: "Fleet", number: int) -> None:
        self.fleet = fleet
        self.place = Endpoint(f"host-{number}", PORT)
        self.out, self.into = Link(fleet.setting.rate), Link(fleet.setting.rate)
        self.rack = number // fleet.setting.rack if fleet.setting.rack else 0
        self.has: set[int] = set()
        self.clients: set[Session] = set()
        self.referrals = Referrals()
        self.sessions: dict[int, Session] = {}
        self.done_at = -1.0
        first = fleet.instances[0].place if fleet.instances else self.place
        self._directory = Directory([first], never=[self.place])
        options = FetchOptions(fleet.setting.parallel, PATIENT.queue_s, PATIENT.stall_s)
        self._fetch = Fetch(options, fleet.clock.now)
        self._look_at = float("inf")

    # -- as a client -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Ask the first server."""
        self.tell(SourcesFound((0,)))

    def tell(self, event: FetchEvent) -> None:
        """Report to the fetch, and do what it decides."""
        self._do(self._fetch.step(event, self.fleet.clock.now))

    def hear_of(self, others: Sequence[str]) -> None:
        """Take up sources that a source has named."""
        if new := self._directory.take_up(places(others), self._fetch.room()):
            self.tell(SourcesFound(new))

    def _do(self, effects: tuple[FetchEffect, ...]) -> None:
        for effect in effects:
            match effect:
                case Dial(key, _):
                    server = self.fleet.at(self._directory[key])
                    session = self.sessions[key] = Session(self, server, key)
                    self.fleet.send(self, partial(server.admit, session))
                case Request(key, segments):
                    session = self.sessions[key]
                    self.fleet.send(self, partial(session.server.serve, session, segments))
                case Drop(key) | Conclude(key):
                    self._end(self.sessions[key])
                case Finish(state, _):
                    assert state is State.DONE
                    self.done_at = self.fleet.clock.now
                    self.fleet.done += 1
                case _:
                    pass
        self._look()

    def _end(self, session: Session) -> None:
        session.open = False
        if session.flow is not None:
            self.fleet.network.stop(session.flow)
        self.fleet.send(self, partial(session.server.leave, session))
        self.fleet.clock.after(0.0, partial(self.ended, session))

    def ended(self, session: Session) -> None:
        """Nothing of a session runs any more."""
        self.sessions.pop(session.key, None)
        self.tell(SourceEnded(session.key))

    def _look(self) -> None:
        due = self._fetch.next_timeout()
        if due is not None and due < self._look_at:
            self._look_at = due
            self.fleet.clock.at(due, partial(self._timeout, due))

    def _timeout(self, due: float) -> None:
        if due == self._look_at:
            self._look_at = float("inf")
            self._do(self._fetch.handle_timeout(self.fleet.clock.now))

    # -- as a server -----------------------------------------------------------------------------

    def admit(self, session: Session) -> None:
        """Offer, or refuse and name others; either way the client learns of other sources."""
        client = session.client
        relays = self.fleet.setting.relay
        others = self.referrals.besides(str(client.place)) if relays else ()
        if len(self.clients) >= self.fleet.places:
            self.fleet.send(self, partial(client.refused, session, others))
            return
        self.clients.add(session)
        if relays:
            self.referrals.note(str(client.place))
        self.fleet.send(self, partial(client.offered, session, others, frozenset(self.has)))

    def refused(self, session: Session, others: Sequence[str]) -> None:
        """The server has no place."""
        self.hear_of(others)
        self.tell(Busy(session.key, RETRY_AFTER_S))
        self.ended(session)

    def offered(self, session: Session, others: Sequence[str], has: frozenset[int]) -> None:
        """The server has a place, and these segments."""
        self.hear_of(others)
        if session.open:
            self.tell(Offered(session.key, self.fleet.root, has))

    def serve(self, session: Session, segments: tuple[int, ...]) -> None:
        """Send these segments."""
        if not session.open:
            return
        client = session.client
        session.asked = [*reversed(segments)]
        if not segments:  # a client that wants nothing but the end
            self.fleet.send(self, partial(client.completed, session))
            return
        parcels = [self.fleet.setting.segment_bytes] * len(segments)
        links = self.fleet.path(self, client)
        session.flow = Flow(links, parcels, partial(client.arrived, session))
        self.fleet.network.start(session.flow)

    def arrived(self, session: Session) -> None:
        """A segment is here: whoever is fed by this instance learns of it."""
        segment = session.asked.pop()
        self.has.add(segment)
        self.tell(SegmentVerified(session.key, segment))
        for child in tuple(self.clients):
            told = partial(child.client.learns, child, frozenset({segment}))
            self.fleet.send(self, told)
        if not session.asked:
            session.flow = None
            self.completed(session)

    def completed(self, session: Session) -> None:
        """All that was asked for is here."""
        if session.open:
            self.tell(Completed(session.key))

    def learns(self, session: Session, segments: frozenset[int]) -> None:
        """A server has more."""
        if session.open:
            self.tell(Available(session.key, segments))

    def leave(self, session: Session) -> None:
        """A client is gone: its place is free."""
        self.clients.discard(session)


class Fleet:
    """All instances, and the network between them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.clock = Clock()
        self.network = Network(self.clock, setting.quantum_s)
        self.places = setting.places
        self.root = Root("blake3", setting.segment_bytes, "root", setting.segments)
        self.done = 0
        self.instances: list[Instance] = []
        for number in range(setting.instances + 1):
            self.instances.append(Instance(self, number))
        self._by_place = {instance.place: instance for instance in self.instances}
        racks = {instance.rack for instance in self.instances}
        self._up = {rack: Link(setting.uplink) for rack in racks}
        self._down = {rack: Link(setting.uplink) for rack in racks}
        self.instances[0].has.update(range(setting.segments))

    def at(self, place: Endpoint) -> Instance:
        """The instance that serves there."""
        return self._by_place[place]

    def path(self, server: Instance, client: Instance) -> tuple[Link, ...]:
        """The links from one host to another."""
        if not self.setting.rack or server.rack == client.rack:
            return server.out, client.into
        return server.out, self._up[server.rack], self._down[client.rack], client.into

    def send(self, sender: Instance, act: Callable[[], None]) -> None:
        """Have a message arrive: it waits behind the data that its host sends."""
        waits = self.setting.queue_s if sender.out.flows else 0.0
        self.clock.after(self.setting.message_s + waits, act)

    def run(self) -> Outcome:
        """Start all instances, and let time pass until each has all."""
        setting, chance = self.setting, random.Random(self.setting.seed)
        clients = self.instances[1:]
        moments = sorted(chance.uniform(0.0, setting.spread_s) for _ in clients)
        if setting.mixed:
            chance.shuffle(clients)
        for client, moment in zip(clients, moments, strict=True):
            self.clock.at(moment, client.begin)
        self.clock.run(lambda: self.done == len(clients))
        if self.done < len(clients):
            raise RuntimeError(f"{len(clients) - self.done} instances never had all")
        seconds = tuple(sorted(client.done_at for client in clients))
        sent = tuple(int(instance.out.carried) for instance in self.instances)
        return Outcome(seconds, sent, setting.segments * setting.segment_bytes)


def simulate(setting: Setting) -> Outcome:
    """What happens to a fleet."""
    return Fleet(setting).run()
