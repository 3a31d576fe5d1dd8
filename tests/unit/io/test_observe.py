"""What an operator reads: one line tells a whole session, and no line is missing or secret."""

from typing import Any

import pytest

from netloader.config import Secret
from netloader.fsm.messages import Begin, Challenge, Lane, Reject, Request, Start
from netloader.fsm.states import State
from netloader.log_events import EVENTS
from netloader.testing import World
from tests.support.messages import OFFERING, WISH
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    IDENTITY,
    Peer,
    asking,
    bytes_of,
    closed_port,
    contents,
    eventually,
    module_of,
    random,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")
Lines = list[dict[str, Any]]

FIELDS = {
    *("network.peer.address", "network.peer.port", "network.transport"),
    *("network.protocol.name", "network.protocol.version"),
    *("netloader.session.id", "netloader.side", "netloader.outcome", "netloader.reason"),
    *("netloader.detail", "netloader.by_peer", "netloader.weights_dirty"),
    *("netloader.transfer.bytes", "netloader.transfer.duration_s"),
    "netloader.transfer.throughput_bytes_per_s",
}
"""What the canonical line of every session has (STYLE.md 4.3)."""

PHASES = {f"netloader.phase.{s}.duration_s" for s in ("listen", "handshake", "validate")}


def named(lines: Lines, event: str, role: str | None = None) -> Lines:
    """The lines of one event, of one role or of both."""
    return [
        line
        for line in lines
        if line["event"] == f"netloader.{event}" and role in (None, line.get("netloader.side"))
    ]


def both_closed(lines: Lines) -> tuple[dict[str, Any], dict[str, Any]]:
    """The canonical lines of client and server, each of which must be there once."""
    assert eventually(lambda: len(named(lines, "session.closed")) == 2)
    (client,) = named(lines, "session.closed", "client")
    (server,) = named(lines, "session.closed", "server")
    return client, server


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_one_line_a_side_tells_the_whole_session(transport: str, captured: Lines) -> None:
    source, target = zoo(1), zoo(2)
    with serving(source) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, asking(transport, lanes=3))
        client_line, server_line = both_closed(captured)

    passing = len(bytes_of(source.get_buffer("passing")))
    total = passing + sum(len(b) for name, b in contents(source).items() if name != "head")
    for line in (client_line, server_line):
        assert set(line) >= FIELDS | PHASES | {"netloader.phase.transfer.duration_s"}
        assert line["severity"] == "INFO"
        assert line["netloader.outcome"] == "done"
        assert line["netloader.reason"] == "verified"
        assert line["netloader.transfer.bytes"] == total == outcome.nbytes
        assert line["network.peer.address"] == "127.0.0.1"
        seconds = line["netloader.transfer.duration_s"]
        assert line["netloader.transfer.throughput_bytes_per_s"] == pytest.approx(
            total / seconds, rel=0.01
        )
    assert client_line["netloader.session.id"] == server_line["netloader.session.id"] != ""
    assert client_line["network.peer.port"] == server.endpoint.port
    assert client_line["netloader.source.attempt"] == 1
    assert client_line["netloader.weights_dirty"] is True
    assert server_line["netloader.weights_dirty"] is False


def test_a_session_opens_moves_at_most_five_times_and_closes(captured: Lines) -> None:
    with serving(zoo(1)) as server:
        fill(zoo(2), [server.endpoint], IDENTITY, asking(lanes=4))
        both_closed(captured)

    for role in ("client", "server"):
        assert len(named(captured, "session.opened", role)) == 1
        assert len(named(captured, "transfer.started", role)) == 1
        assert len(named(captured, "transfer.finished", role)) == 1
        moves = named(captured, "session.transition", role)
        path = [line["netloader.state.from"] for line in moves]
        path.append(moves[-1]["netloader.state.to"])
        assert len(moves) <= 5
        assert path[-4:] == ["handshake", "validate", "transfer", "done"]
    ours = [line for line in captured if line["event"].startswith("netloader.")]
    assert len(ours) < 30
    assert {line["event"] for line in ours} <= set(EVENTS)


def test_the_number_of_tensors_does_not_change_the_number_of_lines(captured: Lines) -> None:
    def lines_for(count: int) -> int:
        before = len(captured)
        tensors = {f"t{i}": random(50, seed=i) for i in range(count)}
        others = {f"t{i}": random(50) for i in range(count)}
        with serving(module_of(**tensors)) as server:
            assert fill(module_of(**others), [server.endpoint], IDENTITY, asking()).ok
        return len(captured) - before

    assert lines_for(2) == lines_for(400)


def test_a_refusal_names_reason_fields_and_who_refused_on_both_sides(captured: Lines) -> None:
    with serving(zoo(1), {"model": "llama", "dtype": "float32"}) as server:
        fill(zoo(2), [server.endpoint], IDENTITY, asking())
        client, server_line = both_closed(captured)

    for line, by_peer in ((client, True), (server_line, False)):
        assert line["severity"] == "WARNING"
        assert line["netloader.outcome"] == "fallback"
        assert line["netloader.reason"] == "identity_mismatch"
        assert line["netloader.by_peer"] is by_peer
        assert set(line) >= FIELDS
        assert "netloader.phase.transfer.duration_s" not in line
    assert client["netloader.difference.0"].startswith("model: mine is 'tiny', theirs is 'llama'")
    assert server_line["netloader.difference.0"].startswith(
        "model: mine is 'llama', theirs is 'tiny'"
    )


def test_a_source_that_nobody_answers_at_has_its_line_too(captured: Lines) -> None:
    fill(zoo(2), [closed_port()], IDENTITY, asking())

    (line,) = named(captured, "session.closed")
    assert line["netloader.reason"] == "unreachable"
    assert line["netloader.detail"] == "Connection refused"
    assert set(line) >= FIELDS
    assert len(named(captured, "source.tried")) == 1


def test_a_lane_is_no_session_and_has_no_line(captured: Lines) -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.say(Lane("nobody", 0))
        assert isinstance(peer.hear(), Reject)
        assert peer.hear() is None

    assert {line["event"] for line in captured} <= {
        "netloader.listener.started",
        "netloader.listener.stopped",
    }


def test_a_session_cannot_turn_into_a_lane_and_vanish_from_the_log(captured: Lines) -> None:
    with serving(zoo(1), token=Secret("x" * 32)) as server, Peer.call(server.endpoint) as peer:
        peer.say(Start((2,), "0" * 32))
        assert isinstance(peer.hear(), Challenge)
        peer.say(Lane("nobody", 0))
        assert isinstance(peer.hear(), Reject)
        assert eventually(lambda: named(captured, "session.closed"))

    (closed,) = named(captured, "session.closed")
    assert closed["netloader.reason"] == "protocol_violation"


def test_what_was_opened_is_closed_even_when_the_peer_just_left(captured: Lines) -> None:
    with serving(zoo(1)) as server:
        with Peer.call(server.endpoint) as peer:
            peer.offered()
        assert eventually(lambda: named(captured, "session.closed"))

    (opened,) = named(captured, "session.opened")
    (closed,) = named(captured, "session.closed")
    assert opened["netloader.session.id"] == closed["netloader.session.id"]
    assert closed["netloader.reason"] == "connection_lost"
    assert closed["severity"] == "WARNING"


def test_nothing_a_peer_said_reaches_the_log_as_it_was(captured: Lines) -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.offered()
        peer.say(Reject("busy", "line one\nnetloader.session.closed forged=1\x1b[31m" + "x" * 9999))
        assert eventually(lambda: named(captured, "session.closed"))

    (closed,) = named(captured, "session.closed")
    assert all(c.isprintable() for c in closed["netloader.detail"])
    assert len(closed["netloader.detail"]) <= 500


def test_the_echo_of_an_aborted_transfer_is_not_said_again(captured: Lines) -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.offered()
        peer.answered()
        peer.say(Request((0,)))  # the lane that it would be sent over never comes
        assert isinstance(peer.hear(), Begin)
        peer.say(Reject("digest_mismatch"))
        # As long as this side does not hang up, the session hears how its transfer took the abort.
        assert eventually(lambda: named(captured, "session.closed"))

    assert [line["netloader.transfer.bytes"] for line in named(captured, "session.closed")] == [0]
    assert len(named(captured, "transfer.aborted")) == 1


def test_a_transfer_that_ended_early_is_said_once_on_each_side(captured: Lines) -> None:
    source = zoo(1)
    with serving(source) as server:
        assert fill(zoo(2), [server.endpoint], IDENTITY, asking()).ok
        both_closed(captured)
        source.get_parameter("embed").data[0, 0] += 1
        captured.clear()
        fill(zoo(2), [server.endpoint], IDENTITY, asking())
        client, server_line = both_closed(captured)

    assert client["netloader.reason"] == server_line["netloader.reason"] == "digest_mismatch"
    assert len(named(captured, "transfer.aborted", "client")) == 1
    assert named(captured, "transfer.finished", "client") == []
    said = [named(captured, f"transfer.{how}", "server") for how in ("finished", "aborted")]
    assert len(said[0] + said[1]) == 1, "all was sent when the client said no, or it was not"


def test_a_transfer_that_took_no_time_has_no_rate(captured: Lines) -> None:
    world = World(WISH, OFFERING)
    while world.client_session.state is not State.TRANSFER:
        world.do(world.choices()[0])
    world.wait(5e-324)  # the least there is: bytes by it are more than a float can hold
    world.run()

    closed = [line for line in captured if line["event"] == "netloader.session.closed"]
    assert [x["netloader.transfer.throughput_bytes_per_s"] for x in closed] == [0, 0]
    assert [x["netloader.outcome"] for x in closed] == ["done", "done"]
