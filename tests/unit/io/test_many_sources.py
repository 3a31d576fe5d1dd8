"""Filling from several sources at once: each sends a share, whatever the others do."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

import pytest
from torch import nn

from netloader import Endpoint, UnsafeError
from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io import Outcome, worker
from netloader.io.client_worker import ClientWorker
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.transports import TRANSPORTS, Capabilities
from netloader.io.transports.base import ReceiverSetup
from tests.support.relay import Fault, Relay
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    MIB,
    SOON_S,
    Peer,
    asking,
    contents,
    eventually,
    module_of,
    our_threads,
    random,
    sealed,
    serving,
)

pytestmark = pytest.mark.usefixtures("driver")
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


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


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


@pytest.fixture
def site(stack: ExitStack, captured: Lines) -> Site:
    return Site(stack, captured)


def by_source(outcome: Outcome) -> dict[Endpoint, int]:
    """Bytes that each source has brought."""
    found: dict[Endpoint, int] = {}
    for attempt in outcome.attempts:
        found[attempt.source] = found.get(attempt.source, 0) + attempt.nbytes
    return found


def reasons(outcome: Outcome, source: Endpoint) -> list[Reason]:
    return [attempt.reason for attempt in outcome.attempts if attempt.source == source]


# -- sharing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("lanes", [1, 2])
def test_sources_share_the_segments(site: Site, count: int, lanes: int) -> None:
    sources = [site.server() for _ in range(count)]
    site.begun = lambda: site.count("netloader.transfer.started") >= count

    outcome = site.fill(*sources, lanes=lanes)

    site.check(outcome)
    assert {attempt.reason for attempt in outcome.attempts} == {Reason.VERIFIED}
    brought = by_source(outcome)
    assert set(brought) == set(sources)
    assert min(brought.values()) > 0
    assert eventually(lambda: len(site.sent()) == count)
    sent = sorted(site.sent())
    assert sent == sorted(brought.values()), "no segment was sent twice"


def test_of_more_sources_than_may_be_asked_at_once_the_first_are(site: Site) -> None:
    sources = [site.server() for _ in range(3)]

    outcome = site.fill(*sources, parallel=2)

    site.check(outcome)
    assert set(by_source(outcome)) == set(sources[:2])


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_single_source_is_asked_for_all_with_one_request(site: Site, parallel: int) -> None:
    site.begun = lambda: True

    outcome = site.fill(site.server(), parallel=parallel)

    site.check(outcome)
    (asked,) = site.lines_of("netloader.transfer.started")
    assert asked["netloader.segments"] == -(-total_of(site.source) // SEGMENT)


def test_by_default_the_second_source_is_not_asked(site: Site) -> None:
    first, second = site.server(), site.server()
    site.begun = lambda: True

    outcome = site.fill(first, second, parallel=asking().parallel)

    site.check(outcome)
    assert set(by_source(outcome)) == {first}


def test_values_are_given_to_a_module_once(stack: ExitStack) -> None:
    class Counting(nn.Module):
        def __init__(self, seed: int, step: int) -> None:
            super().__init__()
            self.w = nn.Parameter(random(MIB, seed=seed), requires_grad=False)
            self.step = step

        def get_extra_state(self) -> int:
            return self.step

        def set_extra_state(self, state: int) -> None:
            given.append(state)
            self.step = state

    given: list[int] = []
    target = Counting(2, step=0)
    sources = [stack.enter_context(serving(Counting(1, step=7))).endpoint for _ in range(3)]

    outcome = fill(target, sources, IDENTITY, asking(parallel=3))

    assert outcome.ok, outcome.history()
    assert contents(target) == contents(Counting(1, step=7))
    assert given == [7]


def test_a_process_group_carries_shares_in_a_session_each(site: Site) -> None:
    # One request a session: so a source that has brought its share is asked again in a new one.
    sources = [site.server(), site.server()]

    outcome = site.fill(*sources, transport="gloo")

    site.check(outcome)
    brought = by_source(outcome)
    assert set(brought) == set(sources)
    assert min(brought.values()) > 0
    assert {attempt.reason for attempt in outcome.attempts} <= {Reason.VERIFIED, Reason.NOT_NEEDED}


# -- sources that fail ---------------------------------------------------------------------------


def test_when_one_of_two_dies_only_what_is_missing_is_asked_of_the_other(site: Site) -> None:
    relay, other = site.relay(Fault.HOLD, 12 * SEGMENT + 7), site.server()
    site.then = relay.cut

    outcome = site.fill(relay.endpoint, other)

    site.check(outcome)
    broken, whole = outcome.attempts
    assert broken.source == relay.endpoint
    assert broken.reason in {Reason.CONNECTION_LOST, Reason.TRANSFER_FAILED}
    assert whole.source == other
    assert eventually(lambda: whole.nbytes in site.sent())


def test_of_two_sources_the_one_that_lies_is_set_aside(site: Site) -> None:
    relay, other = site.relay(Fault.GARBLE, 7), site.server()
    site.begun = lambda: site.count("netloader.transfer.aborted") > 0

    outcome = site.fill(relay.endpoint, other)

    site.check(outcome)
    assert reasons(outcome, relay.endpoint) == [Reason.DIGEST_MISMATCH]
    assert reasons(outcome, other) == [Reason.VERIFIED]


def test_what_a_source_that_stalls_was_asked_for_is_taken_back(site: Site) -> None:
    relay, other = site.relay(Fault.HOLD, 3 * SEGMENT + 7), site.server()
    start = monotonic()

    outcome = site.fill(relay.endpoint, other)

    site.check(outcome)
    assert monotonic() - start < WELL_BEFORE_S
    (slow,) = (attempt for attempt in outcome.attempts if attempt.source == relay.endpoint)
    assert slow.reason is Reason.STOPPED
    assert "slow" in slow.detail
    assert slow.nbytes == 3 * SEGMENT
    assert reasons(outcome, other) == [Reason.VERIFIED]


def test_when_both_fail_the_history_is_whole_in_the_order_of_their_ends(site: Site) -> None:
    relays = [site.relay(Fault.GARBLE, at) for at in (7, 5 * SEGMENT + 7)]
    site.begun = lambda: True

    outcome = site.fill(*(relay.endpoint for relay in relays))

    assert (outcome.state, outcome.reason) == (State.FALLBACK, Reason.NO_SOURCE)
    assert outcome.weights_dirty
    assert {attempt.source for attempt in outcome.attempts} == {r.endpoint for r in relays}
    assert {attempt.reason for attempt in outcome.attempts} == {Reason.DIGEST_MISMATCH}
    closed = site.lines_of("netloader.session.closed")
    ports = [attempt.source.port for attempt in outcome.attempts]
    assert ports == [line["network.peer.port"] for line in closed]
    assert outcome.nbytes == sum(attempt.nbytes for attempt in outcome.attempts)


def test_what_several_sources_left_is_resumed_from_several(site: Site) -> None:
    relays = [site.relay(Fault.GARBLE, at) for at in (3 * SEGMENT + 7, 5 * SEGMENT + 7)]
    before = site.fill(*(relay.endpoint for relay in relays))
    assert before.nbytes
    sources = [site.server(), site.server()]

    after = fill(site.target, sources, IDENTITY, asking(parallel=2), resume=before)

    assert after.ok, after.history()
    assert contents(site.target) == contents(site.source)
    assert after.nbytes == total_of(site.source)
    brought = sum(attempt.nbytes for attempt in after.attempts)
    assert brought == total_of(site.source) - before.nbytes


# -- sources that come late ----------------------------------------------------------------------


def test_a_source_that_was_busy_takes_part_when_it_has_a_place(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RETRY_AFTER_S", 0.1)
    first, full = site.server(), site.server(max_clients=1)
    guest = site.stack.enter_context(Peer.call(full))
    guest.offered()

    def began() -> bool:
        if site.count("netloader.session.closed") == 1:  # refused
            guest.sock.close()
        return site.count("netloader.transfer.started") > 1

    site.begun = began
    outcome = site.fill(first, full, deadlines=replace(PATIENT, queue_s=30))

    site.check(outcome)
    assert reasons(outcome, full)[0] is Reason.BUSY
    assert by_source(outcome)[full] > 0


def test_a_source_that_an_offer_names_is_asked_in_the_same_fill(site: Site) -> None:
    first, named = site.server(), site.server()
    already = asking(serves_at=str(named))
    assert fill(model(9), first, IDENTITY, already).ok

    outcome = site.fill(first, parallel=2)

    site.check(outcome)
    assert set(by_source(outcome)) == {first, named}
    assert by_source(outcome)[named] > 0


# -- other weights -------------------------------------------------------------------------------


def set_aside(site: Site) -> bool:
    closed = site.lines_of("netloader.session.closed")
    return any("other weights" in line["netloader.detail"] for line in closed)


def test_a_source_with_other_weights_is_set_aside_and_never_mixed(site: Site) -> None:
    sources = [site.server(1), site.server(20)]
    site.begun = lambda: set_aside(site)

    outcome = site.fill(*sources)

    assert outcome.ok, outcome.history()
    held = contents(site.target)
    assert held in (contents(model(1)), contents(model(20)))
    other, used = outcome.attempts
    assert (other.reason, other.nbytes) == (Reason.STOPPED, 0)
    assert (used.reason, used.nbytes) == (Reason.VERIFIED, total_of(site.source))


def test_when_the_first_weights_cannot_be_had_those_set_aside_are(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RETRY_AFTER_S", 0.1)
    relay, other = site.relay(Fault.HOLD, 12 * SEGMENT + 7), site.server(20, max_clients=1)
    guest = site.stack.enter_context(Peer.call(other))
    guest.offered()  # so the other one comes second

    def began() -> bool:
        if site.count("netloader.session.closed") == 1:
            guest.sock.close()
        return set_aside(site)

    site.begun, site.then = began, relay.cut
    outcome = site.fill(relay.endpoint, other, deadlines=replace(PATIENT, queue_s=30))

    assert outcome.ok, outcome.history()
    assert contents(site.target) == contents(model(20))
    assert by_source(outcome)[relay.endpoint] > 0
    assert by_source(outcome)[other] == outcome.nbytes == total_of(site.source)


# -- the end -------------------------------------------------------------------------------------


def test_cancelling_ends_all_sessions(site: Site) -> None:
    token = threading.Event()
    relays = [site.relay(Fault.HOLD, 3 * SEGMENT + 7) for _ in range(2)]
    site.then = token.set
    start = monotonic()

    outcome = site.fill(*(relay.endpoint for relay in relays), cancel=token)

    assert monotonic() - start < WELL_BEFORE_S
    assert (outcome.state, outcome.reason) == (State.FALLBACK, Reason.STOPPED)
    assert [attempt.reason for attempt in outcome.attempts] == [Reason.STOPPED] * 2
    assert "cancelled" in outcome.history()


def test_a_time_limit_ends_all_sessions(site: Site) -> None:
    relays = [site.relay(Fault.HOLD, 3 * SEGMENT + 7) for _ in range(2)]
    start = monotonic()

    outcome = site.fill(*(relay.endpoint for relay in relays), timeout_s=2.0)

    assert 2.0 <= monotonic() - start < WELL_BEFORE_S
    assert (outcome.state, outcome.reason) == (State.FALLBACK, Reason.DEADLINE_PASSED)
    assert len(outcome.attempts) == 2


def test_one_transfer_that_does_not_end_makes_the_tensors_unsafe(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = ClientWorker.join
    monkeypatch.setattr(ClientWorker, "join", lambda own, timeout_s: not join(own, timeout_s))

    with pytest.raises(UnsafeError, match="still running"):
        site.fill(site.server(), site.server())


class LateEnd:
    """Either end of a transport that sends nothing, and writes long after it was aborted."""

    def __init__(self, setup: object, released: threading.Event) -> None:
        self.views: list[memoryview] = []
        self.ending = threading.Event()
        self._setup = setup
        self._released = released
        self._aborted = threading.Event()

    def rendezvous(self) -> Mapping[str, str]:
        return {}

    def answered(self, answer: Mapping[str, str]) -> None:
        pass

    def attach(self, index: int, lane: socket.socket) -> None:
        lane.close()

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        return {}

    def join(self) -> None:
        pass

    def run(self, segments: Sequence[Segment], lanes: int = 0) -> int:
        if isinstance(self._setup, ReceiverSetup):
            writers = [self._setup.lease.expect(segment) for segment in segments]
            self.views = [view for writer in writers for view in writer.views()]
        assert self._aborted.wait(STALL_S)
        raise TransferError(Reason.TRANSFER_FAILED, "aborted")

    def abort(self) -> None:
        self._aborted.set()

    def end(self) -> None:
        """Write once more, as a device does whose operation was under way."""
        if self.views:
            self.ending.set()
            assert self._released.wait(SOON_S)
        for view in self.views:
            view[:] = bytes(len(view))


class LateTransport:
    """The transport of such ends, and its attachment to any store."""

    name = "late"
    capabilities = Capabilities()

    def __init__(self) -> None:
        self.released = threading.Event()
        self.receivers: list[LateEnd] = []

    def obstacle(self) -> str:
        return ""

    def attach(self, store: object) -> Self:
        del store
        return self

    def sender(self, setup: object) -> LateEnd:
        return LateEnd(setup, self.released)

    def receiver(self, setup: object) -> LateEnd:
        self.receivers.append(LateEnd(setup, self.released))
        return self.receivers[-1]

    def detach(self) -> None:
        pass


def test_a_late_byte_of_a_dropped_source_lands_on_nothing_that_is_verified(site: Site) -> None:
    late = LateTransport()
    verified: list[int] = []
    over = threading.Event()

    def release() -> None:
        """When everything but what the slow source was asked for is there."""
        assert eventually(lambda: late.receivers and late.receivers[0].ending.is_set(), STALL_S)
        kept = sum(len(view) for view in late.receivers[0].views)
        assert eventually(lambda: verified[-1] == total_of(site.source) - kept)
        assert not over.wait(0.3), "the call has ended while a session still writes"
        assert verified[-1] == total_of(site.source) - kept, "asked of another while it may write"
        late.released.set()

    with TRANSPORTS.registered(late):
        slow = site.server(transports=("late",))
        other = site.server(transports=("tcp",))
        site.begun = lambda: True
        options = asking(
            transports=("late", "tcp"),
            parallel=2,
            deadlines=PATIENT,
            report=lambda done, total: verified.append(done),
        )
        with ThreadPoolExecutor(1) as pool:
            releasing = pool.submit(release)
            outcome = fill(site.target, [slow, other], IDENTITY, options)
            over.set()
            releasing.result()

    site.check(outcome)
    assert reasons(outcome, slow) == [Reason.STOPPED]
    assert by_source(outcome) == {slow: 0, other: total_of(site.source)}
