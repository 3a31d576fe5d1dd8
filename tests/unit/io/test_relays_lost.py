"""A relay that is lost, closed or fenced in the middle: neither its children nor its fill hang."""

from contextlib import ExitStack
from dataclasses import replace

import pytest

from netloader.fsm.messages import Reject
from netloader.fsm.published import ModelState
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from tests.support.relay import Fault
from tests.support.relay import Relay as Wire
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import FAST, IDENTITY, SOON_S, Peer, asking, contents, eventually
from tests.unit.io.test_relays import (
    COUNT,
    PATIENCE,
    SEGMENT,
    Filling,
    Gate,
    model,
    only,
    origin,
    relaying,
)


@pytest.mark.usefixtures("driver")
def test_children_of_a_relay_whose_fill_fails_are_told_at_once(stack: ExitStack) -> None:
    source, relay, gate = origin(stack), relaying(stack), Gate(3)
    wire = stack.enter_context(Wire(source.endpoint, Fault.HOLD, 5 * SEGMENT))
    stack.callback(gate.open.set)
    first = Filling(wire.endpoint, relay=relay, report=gate)
    assert gate.reached.wait(SOON_S)
    seen = Gate(COUNT + 1)
    second = Filling(relay.endpoint, report=seen)
    assert eventually(lambda: seen.segments == 3)
    gate.open.set()
    wire.cut()

    assert not first.outcome().ok
    told = second.outcome()
    (attempt,) = told.attempts
    assert (attempt.reason, attempt.detail) == (
        Reason.NOT_SERVING,
        "the weights were not received",
    )
    again = fill(second.model, source.endpoint, IDENTITY, asking(), resume=told)
    assert again.ok
    assert attempt.nbytes + again.attempts[0].nbytes == COUNT * SEGMENT, "nothing came twice"
    assert contents(second.model) == contents(model(1))


@pytest.mark.usefixtures("driver")
def test_a_child_of_a_relay_that_is_killed_ends_with_another_source(stack: ExitStack) -> None:
    source, relay, gate = origin(stack), relaying(stack), Gate(COUNT // 2)
    stack.callback(gate.open.set)
    first = Filling(source.endpoint, relay=relay, report=gate)
    assert gate.reached.wait(SOON_S)
    wire = stack.enter_context(Wire(relay.endpoint, Fault.HOLD, 2 * SEGMENT + SEGMENT // 2))
    seen = Gate(COUNT + 1)
    second = Filling([wire.endpoint, source.endpoint], report=seen)
    assert eventually(lambda: seen.segments == 2)
    wire.cut()

    outcome = second.outcome()
    assert outcome.ok, outcome.history()
    assert [a.nbytes // SEGMENT for a in outcome.attempts] == [2, COUNT - 2]
    assert first.running
    assert contents(second.model) == contents(model(1))
    gate.open.set()
    assert first.outcome().ok


@pytest.mark.usefixtures("driver")
def test_when_other_weights_are_received_children_begin_anew_with_those(stack: ExitStack) -> None:
    old, new, relay, gate = origin(stack, 1), origin(stack, 2), relaying(stack), Gate(3)
    wire = stack.enter_context(Wire(old.endpoint, Fault.HOLD, 5 * SEGMENT))
    stack.callback(gate.open.set)
    first = Filling([wire.endpoint, new.endpoint], relay=relay, report=gate)
    assert gate.reached.wait(SOON_S)
    seen = Gate(COUNT + 1)
    second = Filling(relay.endpoint, report=seen, deadlines=PATIENCE)
    assert eventually(lambda: seen.segments == 3)
    gate.open.set()
    wire.cut()

    assert first.outcome().ok, first.outcome().history()
    outcome = second.outcome()
    assert outcome.ok, outcome.history()
    assert outcome.attempts[0].reason is Reason.NOT_READY
    assert outcome.attempts[0].detail == "other weights are being received"
    assert contents(first.model) == contents(second.model) == contents(model(2))


@pytest.mark.usefixtures("driver")
def test_a_fence_in_the_middle_ends_the_offer_and_not_the_fill(stack: ExitStack) -> None:
    source, relay, gate = origin(stack), relaying(stack), Gate(3)
    stack.callback(gate.open.set)
    first = Filling(source.endpoint, relay=relay, report=gate)
    assert gate.reached.wait(SOON_S)
    with Peer.call(relay.endpoint) as peer:
        peer.offered()
        with relay.fence(None, "an update"):
            refused = peer.hear()
    gate.open.set()

    assert isinstance(refused, Reject)
    assert (refused.reason, refused.detail) == (Reason.NOT_SERVING.value, "an update")
    assert first.outcome().ok, first.outcome().history()
    assert only(relay).state is ModelState.LOST
    relay.publish(first.model, IDENTITY)
    assert relay.wait_ready(SOON_S)
    assert Filling(relay.endpoint).outcome().ok


def test_two_that_have_only_each_other_do_not_wait_for_ever(stack: ExitStack) -> None:
    quick = replace(FAST, stall_s=2.0)
    source, one, other = origin(stack), relaying(stack), relaying(stack)
    wire = stack.enter_context(Wire(source.endpoint, Fault.HOLD, 3 * SEGMENT))
    seen = Gate(COUNT + 1), Gate(COUNT + 1)
    begin = monotonic()
    first = Filling([wire.endpoint, other.endpoint], relay=one, report=seen[0], deadlines=quick)
    assert eventually(lambda: seen[0].segments == 3)
    second = Filling(one.endpoint, relay=other, report=seen[1], deadlines=quick)
    assert eventually(lambda: seen[1].segments == 3)
    wire.cut()

    for filling in (first, second):
        outcome = filling.outcome()
        assert (outcome.ok, outcome.nbytes) == (False, 3 * SEGMENT)
    assert len(first.outcome().attempts) == 2
    assert monotonic() - begin < 30


def test_a_relay_that_is_closed_does_not_disturb_the_fill(stack: ExitStack) -> None:
    source, relay, gate = origin(stack), relaying(stack), Gate(3)
    stack.callback(gate.open.set)
    first = Filling(source.endpoint, relay=relay, report=gate)
    assert gate.reached.wait(SOON_S)
    relay.close()
    gate.open.set()
    closed = Filling(source.endpoint, relay=relay)

    assert first.outcome().ok, first.outcome().history()
    assert closed.outcome().ok
