"""The wire is cut, ended or held up after every single byte of an honest conversation."""

from collections.abc import Callable

import pytest

from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import CatalogEntry, FetchSpec
from netloader.log import capture
from netloader.testing import Choice, World
from netloader.wire.connection import LINGER_S
from tests.support.messages import CURIOUS, DEADLINES, GUARDED, NBYTES, OFFERING, SECURED, WISH

PAIRS = {"plain": (WISH, OFFERING), "token": (SECURED, GUARDED), "curious": (CURIOUS, OFFERING)}


def carried(world: World) -> int:
    """Bytes that have been read so far, in both directions."""
    return sum(pipe.carried for pipe in world.pipes.values())


def run_to(world: World, nbytes: int) -> None:
    """Let everything happen until so many bytes have been read."""
    while carried(world) < nbytes:
        world.do(world.choices()[0], nbytes - carried(world))


def cut(world: World) -> None:
    world.reset()


def end(world: World) -> None:
    for pipe in world.pipes.values():
        pipe.ended = True


def hold_up(world: World) -> None:
    for pipe in world.pipes.values():
        pipe.stalled = True


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[FetchSpec, CatalogEntry, int]:
    """A pair, and how many bytes its honest conversation has."""
    world = World(*PAIRS[request.param])
    world.run()
    assert world.client_session.state is State.DONE
    return *PAIRS[request.param], carried(world)


@pytest.mark.parametrize("fault", [cut, end])
def test_cut_after_any_byte_both_are_free_at_once_and_neither_is_wrong(
    pair: tuple[FetchSpec, CatalogEntry, int], fault: Callable[[World], None], figures: list[str]
) -> None:
    spec, entry, total = pair
    ends: set[tuple[State, State]] = set()
    for nbytes in range(total):
        with capture():
            world = World(spec, entry)
            run_to(world, nbytes)
            fault(world)
            world.run()
        sessions = (world.client_session, world.server_session)
        ends.add((sessions[0].state, sessions[1].state))
        assert all(side.settled for side in world.ends if side.linked), nbytes
        assert world.now() == 0.0, "nobody had to wait for a deadline"
        for session in sessions:
            if session.state is State.FALLBACK and session.verdict is not None:
                assert session.verdict.reason is Reason.CONNECTION_LOST, nbytes
    figures.append(f"{fault.__name__} after each of {total} bytes: {len(ends)} pairs of ends")
    assert (State.FALLBACK, State.FALLBACK) in ends


def test_held_up_after_any_byte_both_end_with_their_deadlines(
    pair: tuple[FetchSpec, CatalogEntry, int],
) -> None:
    spec, entry, total = pair
    longest = 2 * DEADLINES.handshake_s + DEADLINES.validate_s + DEADLINES.transfer_s(NBYTES)
    for nbytes in range(0, total, 3):
        with capture():
            world = World(spec, entry)
            run_to(world, nbytes)
            hold_up(world)
            world.run()
            world.wait(longest + 2 * LINGER_S)
        assert all(side.link.closed for side in world.ends if side.linked), nbytes
        assert world.next_due() is None


def test_a_write_that_fails_does_not_hide_why_the_connection_broke() -> None:
    # In the runs above a side reads before it works, so that it never writes after the break.
    world = World(WISH, OFFERING)
    while world.client_session.state is not State.VALIDATE:
        world.do(world.choices()[0])
    world.reset()
    world.do(Choice("client", "works"))  # its transport is open, which it wants to say
    world.run()

    verdict = world.client_session.verdict
    assert verdict is not None
    assert verdict.reason is Reason.CONNECTION_LOST
    assert world.now() == 0.0, "it had to wait for a deadline"
