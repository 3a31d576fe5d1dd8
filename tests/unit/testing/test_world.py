"""The world tells a test what can happen, does only that, and finds a broken law."""

import pytest

from netloader.errors import LocalProtocolError
from netloader.fsm.events import OfferRefused, TransferFailed
from netloader.fsm.messages import Lane
from netloader.fsm.reasons import Reason
from netloader.fsm.session import Session
from netloader.fsm.states import State
from netloader.log import capture
from netloader.testing import Choice, LawError, World
from tests.support.messages import OFFERING, WISH


def reasons(world: World) -> list[Reason | None]:
    """The verdicts of client and server."""
    verdicts = [end.session.verdict for end in world.ends]
    return [verdict.reason if verdict else None for verdict in verdicts]


def reached(state: State, **options: object) -> World:
    """A world whose client has come to a state."""
    world = World(WISH, OFFERING, **options)  # type: ignore[arg-type]
    while world.client_session.state is not state:
        world.do(world.choices()[0])
    return world


def test_a_new_world_can_only_begin() -> None:
    world = World(WISH, OFFERING)
    assert world.choices() == [Choice("client", "connects")]
    world.do(Choice("client", "connects"))
    assert world.choices() == [Choice("server", "connects")]


def test_a_run_ends_where_nothing_is_left_and_no_time_has_passed() -> None:
    world = World(WISH, OFFERING)
    world.run()

    assert reasons(world) == [Reason.VERIFIED, Reason.VERIFIED]
    assert (world.choices(), world.next_due(), world.now()) == ([], None, 0.0)
    assert world.holding.contents == {0: b"segment 0", 1: b"segment 1", 2: b"segment 2"}


def test_the_next_source_is_asked_only_for_the_rest_unless_it_has_other_weights() -> None:
    first = reached(State.TRANSFER)
    while len(first.holding.progress.verified) < 2:
        first.do(first.choices()[-1])
    first.reset()
    first.run()
    assert reasons(first)[0] is Reason.CONNECTION_LOST

    second = World(WISH, OFFERING, holding=first.holding)
    while second.client_session.request is None:
        second.do(second.choices()[0])
    assert second.client_session.request.segments == (2,)
    other = World(WISH, OFFERING, contents=(b"x", b"y", b"z"), holding=first.holding)
    other.run()
    assert reasons(other) == [Reason.VERIFIED, Reason.VERIFIED]
    assert other.holding.contents == {0: b"x", 1: b"y", 2: b"z"}


def test_weights_that_changed_under_the_server_are_refused_by_their_digest() -> None:
    world = reached(State.TRANSFER)
    world.fabric.contents[1] += b" changed"
    world.run()

    assert reasons(world) == [Reason.DIGEST_MISMATCH, Reason.DIGEST_MISMATCH]


def test_work_ends_as_a_test_says() -> None:
    world = World(WISH, OFFERING)
    while not world.server.hands.preparing:
        world.do(world.choices()[0])
    world.fail("server", OfferRefused(Reason.BUSY, "full", 2.0))
    world.run()
    assert reasons(world) == [Reason.BUSY, Reason.BUSY]

    world = reached(State.TRANSFER)
    world.fail("client", TransferFailed(Reason.TRANSFER_STALLED, "silence"))
    world.run()
    assert reasons(world) == [Reason.TRANSFER_STALLED, Reason.TRANSFER_STALLED]


def test_work_that_hangs_ends_with_a_deadline_and_the_peer_is_not_told_by_the_fabric() -> None:
    world = reached(State.TRANSFER)
    world.client.hands.hangs = True
    world.run()
    assert reasons(world) == [None, None]
    world.wait_for_a_deadline()
    world.run()

    assert Reason.DEADLINE_PASSED in reasons(world)
    assert world.now() > 0
    assert all(end.settled for end in world.ends)


def test_a_deadline_comes_exactly_when_its_time_has_come() -> None:
    world = World(WISH, OFFERING)
    due = world.next_due()
    assert due is not None
    world.wait(due - 0.001)
    assert reasons(world)[0] is None
    world.wait(0.002)
    assert reasons(world)[0] is Reason.UNREACHABLE


def test_a_forged_lane_takes_the_connection_away_and_is_no_session() -> None:
    world = World(WISH, OFFERING)
    world.do(Choice("client", "connects"))
    world.pipes["server"].bytes.clear()
    world.forge("server", Lane("session-1", 0))
    world.run()

    assert world.server.link.closed
    assert reasons(world) == [Reason.CONNECTION_LOST, None]


def test_there_must_be_work_to_be_done() -> None:
    with pytest.raises(LocalProtocolError):
        World(WISH, OFFERING).do(Choice("client", "works"))


def test_a_session_that_breaks_a_law_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "next_timeout", lambda _: None)

    with pytest.raises(LawError, match="always-a-deadline"):
        World(WISH, OFFERING).run()


def test_a_client_that_claims_what_it_does_not_hold_is_found_out() -> None:
    world = reached(State.TRANSFER)
    world.run()
    world.holding.contents[2] = b"something else"

    with pytest.raises(LawError, match="same-bytes"):
        world.check()


def test_a_mistake_of_ours_is_raised_and_not_only_logged() -> None:
    world = reached(State.VALIDATE)
    world.client.link.handle(OfferRefused(Reason.BUSY, "a client makes no offers"))
    with pytest.raises(LocalProtocolError):
        world.check()


def test_deadlines_of_one_moment_come_in_one_order() -> None:
    # A world that depends on where objects lie in memory cannot be had again.
    first = set()
    for _ in range(50):
        with capture() as lines:
            world = reached(State.HANDSHAKE)
            world.do(Choice("server", "connects"))
            for pipe in world.pipes.values():
                pipe.stalled = True
            world.wait_for_a_deadline()
        moves = [x for x in lines if x["event"] == "netloader.session.transition"]
        first.add(moves[-2]["netloader.side"])
        assert {x["netloader.side"] for x in moves[-2:]} == {"client", "server"}
    assert first == {"client"}
