"""Filling from several sources at once: what happens when some fail, and how it ends."""

import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import pytest

from netloader import UnsafeError
from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io.client_worker import ClientWorker
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.transports import TRANSPORTS, Capabilities
from netloader.io.transports.base import ReceiverSetup
from tests.support.relay import Fault
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import IDENTITY, asking, contents, eventually
from tests.unit.io.sites import (
    PATIENT,
    SEGMENT,
    STALL_S,
    WELL_BEFORE_S,
    Site,
    by_source,
    reasons,
    total_of,
)

pytestmark = pytest.mark.usefixtures("driver")


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


def test_when_both_fail_the_history_has_both(site: Site) -> None:
    relays = [site.relay(Fault.GARBLE, at) for at in (7, 5 * SEGMENT + 7)]
    site.begun = lambda: True

    outcome = site.fill(*(relay.endpoint for relay in relays))

    assert (outcome.state, outcome.reason) == (State.FALLBACK, Reason.NO_SOURCE)
    assert outcome.weights_dirty
    assert {attempt.source for attempt in outcome.attempts} == {r.endpoint for r in relays}
    assert {attempt.reason for attempt in outcome.attempts} == {Reason.DIGEST_MISMATCH}
    closed = site.lines_of("netloader.session.closed")
    ports = {attempt.source.port for attempt in outcome.attempts}
    assert ports == {line["network.peer.port"] for line in closed}
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

    def fail(self) -> None:
        """Fail by itself: for a session, as if it were aborted."""
        self._aborted.set()

    def end(self) -> None:
        """Write once more, as a device does whose operation was under way."""
        if self.views:
            self.ending.set()
            assert self._released.wait(STALL_S)
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


def test_while_a_source_that_failed_may_still_write_another_brings_all_else(site: Site) -> None:
    late = LateTransport()
    kept, asked = list[int](), list[int]()

    def fail() -> None:
        """Have the session be over while its receiver is not, before the other one goes on."""
        (receiver,) = late.receivers
        kept.append(sum(len(view) for view in receiver.views))
        receiver.fail()
        assert eventually(lambda: site.count("netloader.session.closed") == 1)
        assert eventually(receiver.ending.is_set)

    def report(done: int, total: int) -> None:
        site.report(done, total)
        if done == total - kept[0]:
            requests = site.lines_of("netloader.transfer.started")
            asked.append(sum(line["netloader.segments"] for line in requests))
            late.released.set()

    with TRANSPORTS.registered(late):
        failing = site.server(transports=("late",))
        other = site.server(transports=("tcp",))
        site.begun = lambda: late.receivers and late.receivers[0].views
        site.then = fail
        options = asking(
            transports=("late", "tcp"), parallel=2, lanes=1, deadlines=PATIENT, report=report
        )
        outcome = fill(site.target, [failing, other], IDENTITY, options)

    site.check(outcome)
    assert asked == [-(-total_of(site.source) // SEGMENT)], "asked of another while it may write"
    assert reasons(outcome, failing) == [Reason.TRANSFER_FAILED]
    assert by_source(outcome) == {failing: 0, other: total_of(site.source)}
