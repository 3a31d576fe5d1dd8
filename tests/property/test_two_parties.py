"""A client faces a server: any progress, any lanes, any order of events, no fault.

The exhaustive search is for the faults; here it is the data that varies.
"""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from netloader.fsm.effects import StartTransfer
from netloader.fsm.manifest import Progress, segments_of
from netloader.fsm.messages import Complete, Purpose, Verified
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import CatalogEntry, FetchSpec
from tests.property.strategies import matching, progresses
from tests.support.messages import (
    CURIOUS,
    DIGESTS,
    GUARDED,
    MANIFEST,
    NBYTES,
    OFFERING,
    ROOT,
    SEGMENT_BYTES,
    TOKEN,
    WISH,
    said,
)
from tests.support.world import Choice, World

MOST_STEPS = 40
"""An honest conversation is over after 16 events; more is a conversation in circles."""
PAUSES = st.floats(0.0, 0.05)
"""Far below every deadline, even when each of MOST_STEPS takes the longest pause."""


def run(world: World, data: st.DataObject) -> None:
    """Let things happen in any order until nothing is left to happen."""
    pause = data.draw(PAUSES, label="pause")
    for _ in range(MOST_STEPS):
        choices = world.choices()
        if not choices:
            return
        world.do(data.draw(st.sampled_from(choices), label="next"), pause)
    raise AssertionError(f"still busy after {MOST_STEPS} steps")


def states(world: World) -> tuple[State, State]:
    return world.client_session.state, world.server_session.state


@given(matching(), st.data())
def test_an_honest_world_ends_well_in_any_order(
    pair: tuple[FetchSpec, CatalogEntry], data: st.DataObject
) -> None:
    spec, entry = pair
    world = World(spec, entry)

    run(world, data)

    assert states(world) == (State.DONE, State.DONE)
    for session in (world.client_session, world.server_session):
        assert session.verdict is not None
        curious = spec.purpose is Purpose.DESCRIBE
        assert session.verdict.reason is (Reason.DESCRIBED if curious else Reason.VERIFIED)


@given(progresses, st.data())
def test_only_what_is_missing_travels_and_all_of_it(
    progress: Progress, data: st.DataObject
) -> None:
    world = World(replace(WISH, progress=progress))

    run(world, data)

    same = (progress.digest_algorithm, progress.segment_digests) == ("sha256", DIGESTS)
    missing = tuple(i for i in range(3) if not (same and i in progress.verified))
    nbytes = sum(segments_of(MANIFEST, SEGMENT_BYTES)[i].nbytes for i in missing)
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


PAIRS = ((WISH, OFFERING), (replace(WISH, token=TOKEN), GUARDED), (CURIOUS, OFFERING))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=60))
def test_conversations_on_one_machine_share_nothing(turns: list[tuple[int, int]]) -> None:
    together = [World(*pair) for pair in PAIRS]
    taken: list[list[Choice]] = [[] for _ in PAIRS]
    for which, turn in turns:
        if choices := together[which].choices():
            taken[which].append(choices[turn % len(choices)])
            together[which].do(taken[which][-1])

    for world, pair, choices in zip(together, PAIRS, taken, strict=True):
        alone = World(*pair)
        for choice in choices:
            alone.do(choice)
        for who, party in alone.parties.items():
            assert party.steps == world.parties[who].steps, "nothing-shared"
