"""A client serves what it receives, from its first verified segment on."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Final

import pytest
import torch
from torch import nn

from netloader.fsm.messages import Have, Offer, Reject, Request
from netloader.fsm.published import ModelState
from netloader.fsm.published_events import ComputeDigests
from netloader.fsm.ranges import segments_in
from netloader.fsm.reasons import Reason
from netloader.io import Outcome, Server, ServerOptions
from netloader.io.comparing import Work
from netloader.io.published import PublishedModel
from netloader.io.store import ledger
from netloader.io.store.ledger import SegmentWriter
from netloader.io.store.memory import HostStore
from netloader.io.store.module import ModuleStore
from tests.support.relay import Fault
from tests.support.relay import Relay as Wire
from tests.unit.io.drivers import fill, listen
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    SOON_S,
    Peer,
    asking,
    contents,
    eventually,
    hello,
    module_of,
    random,
    sealed,
    serving,
)

SEGMENT: Final = 64 * KIB
COUNT: Final = 8
ALL: Final = frozenset(range(COUNT))
PATIENCE: Final = replace(FAST, queue_s=20)


def model(seed: int) -> nn.Module:
    return module_of(w=random(COUNT * SEGMENT, seed=seed, dtype=torch.uint8))


class Gate:
    """A progress report that waits, at some number of segments, until the gate is opened."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reached, self.open = threading.Event(), threading.Event()
        self.segments = 0

    def __call__(self, done: int, total: int) -> None:
        self.segments = done // SEGMENT
        if self.segments >= self.at:
            self.reached.set()
            assert self.open.wait(SOON_S)


class Filling:
    """A fill on a thread of its own, with the driver of the test."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.outcomes: list[Outcome] = []
        self.model = model(100)
        options.setdefault("lanes", 1)
        context = copy_context()

        def work() -> None:
            self.outcomes.append(fill(self.model, *args, IDENTITY, asking(**options)))

        self._thread = threading.Thread(target=context.run, args=(work,))
        self._thread.start()

    @property
    def running(self) -> bool:
        return not self.outcomes and self._thread.is_alive()

    def outcome(self) -> Outcome:
        self._thread.join(60)
        (outcome,) = self.outcomes
        return outcome


def relaying(stack: ExitStack, **options: Any) -> Server:
    """A server of nothing yet."""
    chosen = ServerOptions(deadlines=FAST, **options)
    return stack.enter_context(contextlib.closing(listen(options=chosen)))


def origin(stack: ExitStack, seed: int = 1, **options: Any) -> Server:
    return sealed(stack.enter_context(serving(model(seed), **options)))


def only(server: Server) -> Any:
    (one,) = server.snapshot().models
    return one


def told(peer: Peer, begun: frozenset[int] = frozenset()) -> Iterator[frozenset[int]]:
    """What a peer was told to be there, after each word."""
    while isinstance(heard := peer.hear(), Have):
        begun |= segments_in(heard.segments)
        yield begun
    yield begun


# -- from end to end -------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "shm"])
@pytest.mark.usefixtures("driver")
def test_a_child_has_all_but_the_last_segment_while_the_relay_waits_for_it(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    computed: list[PublishedModel] = []
    worked = PublishedModel._worked

    def counted(self: PublishedModel, work: Work, workers: int) -> Any:
        if isinstance(work, ComputeDigests):
            computed.append(self)
        return worked(self, work, workers)

    relay = relaying(stack, transports=(transport,))
    source, gate = origin(stack), Gate(COUNT - 1)
    stack.callback(gate.open.set)
    monkeypatch.setattr(PublishedModel, "_worked", counted)
    first = Filling(source.endpoint, report=gate, relay=relay)
    assert gate.reached.wait(SOON_S)
    seen = Gate(COUNT + 1)
    second = Filling(relay.endpoint, report=seen, transport=transport)

    assert eventually(lambda: seen.segments == COUNT - 1)
    assert first.running
    assert only(relay).state is ModelState.RECEIVING
    gate.open.set()

    assert first.outcome().ok, first.outcome().history()
    assert second.outcome().ok, second.outcome().history()
    assert len(second.outcome().attempts) == 1
    assert contents(first.model) == contents(second.model) == contents(model(1))
    assert (only(source).sessions, only(relay).state) == (1, ModelState.OFFERED)
    assert computed == [], "what is verified is not hashed again"
    assert Filling(relay.endpoint, transport=transport).outcome().ok


@pytest.mark.usefixtures("driver")
def test_what_was_received_is_watched_as_any_served_model(stack: ExitStack) -> None:
    source, relay = origin(stack), relaying(stack)
    first = Filling(source.endpoint, relay=relay)
    assert first.outcome().ok
    with torch.no_grad():
        first.model.get_parameter("w")[:SEGMENT] = 7
    second = Filling(relay.endpoint)
    assert second.outcome().attempts[0].reason is Reason.NOT_READY
    assert relay.wait_ready(SOON_S)
    third = Filling(relay.endpoint)

    assert third.outcome().ok, third.outcome().history()
    assert contents(third.model) == contents(first.model)
    with relay.fence(None, "an update"):
        first.model.get_parameter("w").data[:SEGMENT] = 8
    assert relay.wait_ready(SOON_S)
    fourth = Filling(relay.endpoint)
    assert fourth.outcome().ok
    assert contents(fourth.model) == contents(first.model)


def test_a_host_store_is_relayed_as_well(stack: ExitStack) -> None:
    source, relay = origin(stack), relaying(stack)
    store = HostStore(ModuleStore.of(model(3)).manifest)
    assert fill(store, source.endpoint, IDENTITY, asking(relay=relay)).ok
    assert Filling(relay.endpoint).outcome().ok


@pytest.mark.usefixtures("driver")
def test_a_server_of_nothing_says_come_again_and_serves_what_it_is_given(stack: ExitStack) -> None:
    relay = relaying(stack)
    assert relay.snapshot().models == ()
    refused = Filling(relay.endpoint).outcome()
    relay.publish(model(1), IDENTITY)
    assert relay.wait_ready(SOON_S)

    assert refused.attempts[0].reason is Reason.NOT_READY
    assert Filling(relay.endpoint).outcome().ok


# -- what is not verified --------------------------------------------------------------------------


def test_a_segment_between_its_bytes_and_its_digest_is_neither_told_nor_sent(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on = threading.Event(), threading.Event()
    finish = SegmentWriter._finish

    def hold(self: SegmentWriter) -> None:
        if self.segment.index == 2 and not go_on.is_set():
            held.set()
            assert go_on.wait(SOON_S)
        finish(self)

    monkeypatch.setattr(ledger.SegmentWriter, "_finish", hold)
    stack.callback(go_on.set)
    source, relay = origin(stack), relaying(stack)
    first = Filling(source.endpoint, relay=relay)
    assert held.wait(SOON_S)
    with Peer.call(relay.endpoint) as early, Peer.call(relay.endpoint) as waits:
        early.say(hello())
        offer = early.hear()
        assert isinstance(offer, Offer)
        assert offer.availability == ((0, 2),)
        early.answered()
        early.say(Request((2,)))
        refused = early.hear()
        assert isinstance(refused, Reject)
        assert refused.reason == Reason.NOT_AVAILABLE.value
        again = waits.offered()
        go_on.set()
        assert first.outcome().ok
        available = segments_in(again.availability or ())
        for now in told(waits, available):
            if now == ALL:
                break
        assert now == ALL


def test_a_segment_with_a_wrong_byte_is_never_offered(stack: ExitStack) -> None:
    source, relay = origin(stack), relaying(stack)
    wire = stack.enter_context(Wire(source.endpoint, Fault.GARBLE, 3 * SEGMENT + 5))
    gate = Gate(2)
    stack.callback(gate.open.set)
    first = Filling(wire.endpoint, relay=relay, report=gate)
    assert gate.reached.wait(SOON_S)
    with Peer.call(relay.endpoint) as peer:
        offer = peer.offered()
        available = segments_in(offer.availability or ())
        gate.open.set()
        assert not first.outcome().ok
        *_, last = told(peer, available)

    assert last == {0, 1, 2}
    assert only(relay).state is ModelState.RETIRED


# -- where it is -----------------------------------------------------------------------------------


def test_a_source_names_the_relay_to_clients_that_it_has_no_place_for(stack: ExitStack) -> None:
    source, relay, gate = origin(stack, max_clients=1), relaying(stack), Gate(3)
    stack.callback(gate.open.set)
    first = Filling(source.endpoint, relay=relay, report=gate)
    assert gate.reached.wait(SOON_S)
    with Peer.call(source.endpoint) as peer:
        peer.say(hello())
        refused = peer.hear()
    gate.open.set()

    assert isinstance(refused, Reject)
    assert refused.other_sources == (str(relay.endpoint),)
    assert first.outcome().ok


def test_a_relay_whose_client_is_gone_is_not_named(stack: ExitStack) -> None:
    source = origin(stack, max_clients=1)

    def named() -> tuple[str, ...]:
        with Peer.call(source.endpoint) as peer:
            peer.say(hello())
            refused = peer.hear()
            assert isinstance(refused, Reject)
            return refused.other_sources

    with Peer.call(source.endpoint) as gone:
        gone.say(replace(hello(), serves_at="h:1"))
        assert isinstance(gone.hear(), Offer)
        before = named()
    assert eventually(lambda: only(source).clients == 0)
    with Peer.call(source.endpoint) as next_one:
        next_one.offered()
        after = named()

    assert (before, after) == (("h:1",), ())


def test_a_relay_on_every_address_announces_none(stack: ExitStack) -> None:
    relay = relaying(stack)
    everywhere = stack.enter_context(listen("0.0.0.0"))

    assert asking(relay=relay).serves_at == relay.endpoint
    assert asking(relay=everywhere).serves_at is None
    assert str(asking(relay=everywhere, serves_at="a.host:1").serves_at) == "a.host:1"
    with pytest.raises(TypeError, match=r"netloader\.listen"):
        asking(relay=7)
