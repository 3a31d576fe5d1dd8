"""A client faces a server: any order of events, with no fault or with one."""

from dataclasses import replace

from hypothesis import event, given
from hypothesis import strategies as st

from netloader.fsm.client import Wish
from netloader.fsm.effects import StartTransfer
from netloader.fsm.manifest import Progress, plan
from netloader.fsm.messages import Complete, Purpose, Verified
from netloader.fsm.reasons import Reason
from netloader.fsm.server import Offering
from netloader.fsm.states import State
from tests.property.world import (
    CURIOUS,
    DEADLINES,
    DIGESTS,
    GUARDED,
    MANIFEST,
    NBYTES,
    OFFERING,
    ROOT,
    SEGMENT_BYTES,
    TOKEN,
    WISH,
    Choice,
    World,
    said,
)

MOST_STEPS = 40
"""An honest conversation is over after 16 events; more is a conversation in circles."""
HONEST_STEPS = st.integers(0, 14)
"""How far a conversation has come when something goes wrong: from nowhere to almost over."""
PAUSES = st.floats(0.0, 0.05)
"""Far below every deadline, even when each of MOST_STEPS takes the longest pause."""

progresses = st.builds(
    Progress,
    st.sampled_from(["sha256", "blake3", ""]),
    st.just(SEGMENT_BYTES),
    st.sampled_from([DIGESTS, ("other", "other", "other"), ()]),
    st.frozensets(st.integers(0, 2)),
)


@st.composite
def matching(draw: st.DrawFn) -> tuple[Wish, Offering]:
    """A client and a server that should come to terms."""
    secured = draw(st.booleans(), label="token")
    wish = draw(st.sampled_from([WISH, WISH, WISH, CURIOUS]), label="wish")
    progress = draw(progresses, label="progress")
    lanes = draw(st.integers(1, 16), label="lanes")
    token = TOKEN if secured else None
    wish = replace(wish, token=token, progress=progress, lanes=lanes)
    return wish, GUARDED if secured else OFFERING


def run(world: World, data: st.DataObject, most: int = MOST_STEPS) -> None:
    """Let things happen in any order until nothing is left to happen, or `most` have."""
    pause = data.draw(PAUSES, label="pause")
    for _ in range(most):
        choices = world.choices()
        if not choices:
            return
        world.do(data.draw(st.sampled_from(choices), label="next"), pause)
    assert most < MOST_STEPS, f"still busy after {most} steps"


def states(world: World) -> tuple[State, State]:
    return world.client_session.state, world.server_session.state


def agree(world: World) -> None:
    """What the two may say about each other at any moment."""
    c, s = world.client_session, world.server_session
    if c.wish.purpose is Purpose.DESCRIPTION:
        return  # the description is the last word, and a last word may be lost
    if c.state is State.DONE:
        assert s.sent, "agreement: a client is only done after the server has sent everything"
        assert c.offer is not None
        assert c.offer.digests == s.digests, "same-bytes"
    if s.state is State.DONE:
        assert c.state is State.DONE, "a server is only done after its client"


@given(matching(), st.data())
def test_an_honest_world_ends_well_in_any_order(
    pair: tuple[Wish, Offering], data: st.DataObject
) -> None:
    wish, offering = pair
    world = World(wish, offering)

    run(world, data)

    assert states(world) == (State.DONE, State.DONE)
    agree(world)
    for session in (world.client_session, world.server_session):
        assert session.verdict is not None
        curious = wish.purpose is Purpose.DESCRIPTION
        assert session.verdict.reason is (Reason.DESCRIBED if curious else Reason.VERIFIED)


@given(progresses, st.data())
def test_only_what_is_missing_travels_and_all_of_it(
    progress: Progress, data: st.DataObject
) -> None:
    world = World(replace(WISH, progress=progress))

    run(world, data)

    same = (progress.algorithm, progress.digests) == ("sha256", DIGESTS)
    missing = tuple(i for i in range(3) if not (same and i in progress.verified))
    nbytes = sum(plan(MANIFEST, SEGMENT_BYTES)[i].nbytes for i in missing)
    started = [
        effect
        for party in world.parties.values()
        for step in party.steps
        for effect in step.effects
        if isinstance(effect, StartTransfer)
    ]
    words = [w for party in world.parties.values() for step in party.steps for w in said(step)]
    assert started == [StartTransfer(missing, WISH.lanes)] * 2
    assert Complete(nbytes) in words
    assert Verified(len(missing), nbytes, ROOT) in words
    assert nbytes == NBYTES or missing != (0, 1, 2)


@given(matching(), HONEST_STEPS, st.integers(0, 5), st.data())
def test_after_one_fault_time_alone_settles_both(
    pair: tuple[Wish, Offering], before: int, after: int, data: st.DataObject
) -> None:
    world = World(*pair)
    run(world, data, before)
    fault = data.draw(st.sampled_from(world.faults()), label="fault")
    event(f"{fault.what} in {world.client_session.state.name}/{world.server_session.state.name}")
    world.hurt(fault)
    agree(world)
    run(world, data, after)
    agree(world)

    begun = world.now
    world.only_time_passes()

    assert all(party.settled for party in world.parties.values())
    agree(world)
    whole = DEADLINES.connect_s + DEADLINES.handshake_s + DEADLINES.validate_s
    assert world.now - begun <= whole + DEADLINES.transfer_s(NBYTES)


@given(matching(), HONEST_STEPS, st.data())
def test_after_one_fault_the_other_side_hears_of_it_without_waiting(
    pair: tuple[Wish, Offering], before: int, data: st.DataObject
) -> None:
    world = World(*pair)
    run(world, data, before)
    fault = data.draw(st.sampled_from(world.faults()), label="fault")
    world.hurt(fault)

    run(world, data)

    assert all(party.settled for party in world.parties.values())
    agree(world)


@given(matching(), st.data())
def test_a_dead_network_is_over_when_time_says_so(
    pair: tuple[Wish, Offering], data: st.DataObject
) -> None:
    world = World(*pair)
    run(world, data, data.draw(HONEST_STEPS, label="steps"))
    living = [party for party in world.parties.values() if not party.settled]

    world.only_time_passes()

    for party in living:
        assert party.session.verdict is not None
        assert party.session.state is State.FALLBACK
        expected = {Reason.DEADLINE_PASSED, Reason.UNREACHABLE}
        assert party.session.verdict.reason in expected


@given(matching(), HONEST_STEPS, st.data())
def test_a_client_is_dirty_exactly_when_bytes_may_have_come(
    pair: tuple[Wish, Offering], before: int, data: st.DataObject
) -> None:
    world = World(*pair)
    run(world, data, before)
    world.hurt(Choice("both", "reset"))
    run(world, data)

    steps = world.parties["client"].steps
    started = any(isinstance(e, StartTransfer) for step in steps for e in step.effects)
    verdict = world.client_session.verdict
    assert verdict is not None
    assert verdict.weights_dirty == started
    served = world.server_session.verdict
    assert served is not None
    assert not served.weights_dirty, "a server's own weights are never touched"
