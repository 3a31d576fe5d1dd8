"""Filling from several sources at once: each sends a share, also late or with other weights."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
from torch import nn

from netloader.fsm.reasons import Reason
from netloader.io import worker
from netloader.io.transports.tcp import Tcp
from tests.support.relay import Fault
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import IDENTITY, MIB, Peer, asking, contents, eventually, random, serving
from tests.unit.io.sites import PATIENT, SEGMENT, Site, by_source, model, reasons, total_of

pytestmark = pytest.mark.usefixtures("driver")


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


def test_sources_share_over_a_process_group(site: Site) -> None:
    sources = [site.server(), site.server()]

    outcome = site.fill(*sources, transport="gloo")

    site.check(outcome)
    brought = by_source(outcome)
    assert set(brought) == set(sources)
    assert min(brought.values()) > 0
    assert {attempt.reason for attempt in outcome.attempts} <= {Reason.VERIFIED, Reason.NOT_NEEDED}


def test_a_transport_for_one_request_carries_each_share_in_a_session_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tcp, "capabilities", replace(Tcp.capabilities, repeatable=False))
    sources = [site.server(), site.server()]

    outcome = site.fill(*sources)

    site.check(outcome)
    assert set(by_source(outcome)) == set(sources)
    assert len(outcome.attempts) > len(sources)


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
