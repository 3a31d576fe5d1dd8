"""Filling a model from sources: what a caller sees when all is well, and when a source is wrong."""

import socket
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from netloader.config import Endpoint, Secret
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Candidate, Description, Hello, Reject
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io import WeightsError
from netloader.io.clock import monotonic
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    SOON_S,
    Peer,
    asking,
    bytes_of,
    closed_port,
    contents,
    module_of,
    places,
    pretending,
    random,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")
Lines = list[dict[str, Any]]


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_a_model_is_filled_in_place_with_every_byte(transport: str) -> None:
    source, target = zoo(1), zoo(100)
    before = places(target)

    with serving(source) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, asking(transport))

    assert outcome.ok
    assert outcome.state is State.DONE
    assert outcome.reason is Reason.VERIFIED
    assert outcome.weights_dirty
    assert contents(target) == contents(source)
    assert places(target) == before
    assert target.get_parameter("head") is target.get_parameter("embed")
    assert bytes_of(target.get_buffer("passing")) == bytes_of(source.get_buffer("passing"))


def test_the_outcome_has_source_bytes_and_seconds() -> None:
    source, target = zoo(1), zoo(2)
    with serving(source) as server:
        outcome = fill(target, [str(server.endpoint)], IDENTITY, asking())

    (attempt,) = outcome.attempts
    assert outcome.source == attempt.source == server.endpoint
    assert outcome.nbytes == attempt.nbytes > 100_000
    assert (attempt.reason, attempt.differences) == (Reason.VERIFIED, ())
    assert all(outcome.seconds[s] > 0 for s in (State.LISTEN, State.HANDSHAKE, State.TRANSFER))
    assert outcome.progress.missing() == ()
    assert f"{server.endpoint}: verified" in outcome.history()


@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_the_number_of_lanes_does_not_matter(lanes: int, captured: Lines) -> None:
    source, target = zoo(1), zoo(2)
    with serving(source) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking(lanes=lanes)).ok

    assert contents(target) == contents(source)
    started = [line for line in captured if line["event"] == "netloader.transfer.started"]
    assert [line["netloader.lanes"] for line in started] == [lanes, lanes]


def test_progress_is_told_from_the_first_segment_to_the_last_byte() -> None:
    told: list[tuple[int, int]] = []
    with serving(zoo(1)) as server:
        options = asking(report=lambda done, total: told.append((done, total)))
        outcome = fill(zoo(2), [server.endpoint], IDENTITY, options)

    done = [d for d, _ in told]
    assert done == sorted(done)
    assert told[-1] == (outcome.nbytes, outcome.nbytes)
    assert len(told) == len(outcome.progress.segment_digests) > 1


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_a_server_on_an_ipv6_address_is_reached(transport: str) -> None:
    source, target = zoo(1), zoo(2)
    with serving(source, host="::1") as server:
        assert fill(target, [f"[::1]:{server.endpoint.port}"], IDENTITY, asking(transport)).ok

    assert contents(target) == contents(source)


def test_a_host_name_is_looked_up() -> None:
    with serving(zoo(1)) as server:
        assert fill(zoo(2), [f"localhost:{server.endpoint.port}"], IDENTITY, asking()).ok


# -- nothing to fill, nobody to ask --------------------------------------------------------------


def test_no_source_is_an_outcome_not_an_exception() -> None:
    target = zoo(1)
    before = contents(target)
    outcome = fill(target, [], IDENTITY, asking())

    assert (outcome.state, outcome.reason) == (State.FALLBACK, Reason.NO_SOURCE)
    assert (outcome.ok, outcome.source, outcome.attempts) == (False, None, ())
    assert not outcome.weights_dirty
    assert contents(target) == before


def test_a_model_without_bytes_or_memory_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(WeightsError, match="no bytes to fill"):
        fill(nn.Identity(), ["127.0.0.1:1"], IDENTITY, asking())
    ghost = module_of(ghost=torch.empty(3, device="meta"))
    with pytest.raises(WeightsError, match="ghost has no plain memory"):
        fill(ghost, ["127.0.0.1:1"], IDENTITY, asking())
    with pytest.raises(ValueError, match="write host:port"):
        fill(zoo(1), ["nowhere"], IDENTITY, asking())


def test_a_closed_port_is_unreachable_and_leaves_the_model_clean() -> None:
    target = zoo(1)
    before = contents(target)
    outcome = fill(target, [closed_port()], IDENTITY, asking())

    assert [(a.reason, a.nbytes) for a in outcome.attempts] == [(Reason.UNREACHABLE, 0)]
    assert not outcome.weights_dirty
    assert contents(target) == before


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid", "a..b"])
def test_a_name_that_cannot_be_looked_up_is_unreachable_at_once(host: str) -> None:
    # Names with a label of more than 63 characters fail in Python's codec, not in the resolver.
    start = monotonic()
    options = asking(deadlines=replace(FAST, connect_s=20))
    outcome = fill(zoo(1), [Endpoint(host, 9)], IDENTITY, options)

    assert [a.reason for a in outcome.attempts] == [Reason.UNREACHABLE]
    assert monotonic() - start < 15


def test_a_dead_first_source_is_passed_over() -> None:
    source, target = zoo(1), zoo(2)
    with serving(source) as server:
        outcome = fill(target, [closed_port(), server.endpoint], IDENTITY, asking())

    assert outcome.ok
    assert [a.reason for a in outcome.attempts] == [Reason.UNREACHABLE, Reason.VERIFIED]
    assert outcome.source == server.endpoint
    assert contents(target) == contents(source)


# -- servers that say the wrong thing, or nothing ------------------------------------------------


def silent(peer: Peer) -> None:
    peer.sock.recv(1 << 16)
    peer.hear()


def test_a_server_that_never_answers_costs_one_handshake_deadline() -> None:
    options = asking(deadlines=replace(FAST, handshake_s=0.3))
    with pretending(silent) as endpoint:
        start = monotonic()
        outcome = fill(zoo(1), [endpoint], IDENTITY, options)

    assert [a.reason for a in outcome.attempts] == [Reason.DEADLINE_PASSED]
    assert monotonic() - start < SOON_S
    assert not outcome.weights_dirty


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda peer: peer.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n"), "protocol_violation"),
        (lambda peer: peer.sock.sendall(b"\x15\x03\x01\x00\x02\x02\x46"), "protocol_violation"),
        (lambda peer: peer.say(Description(Identity({}))), "protocol_violation"),
        (lambda peer: peer.say(Reject("not_serving", "asleep")), "not_serving"),
        (lambda peer: peer.say(Reject("from_the_future", "?")), "refused"),
        (lambda peer: peer.sock.close(), "connection_lost"),
    ],
)
def test_whatever_a_server_says_instead_of_an_offer_ends_it_with_a_reason(
    script: Any, reason: str
) -> None:
    source, target = zoo(1), zoo(2)

    def answer(peer: Peer) -> None:
        assert isinstance(peer.hear(), Hello)
        script(peer)
        if peer.sock.fileno() != -1:
            peer.hear()

    with pretending(answer) as endpoint, serving(source) as server:
        outcome = fill(target, [endpoint, server.endpoint], IDENTITY, asking())

    assert [a.reason.value for a in outcome.attempts] == [reason, "verified"]
    assert contents(target) == contents(source)


def test_an_offer_of_something_else_than_was_asked_for_is_refused() -> None:
    target = zoo(1)

    def answer(peer: Peer) -> None:
        assert isinstance(peer.hear(), Hello)
        peer.say(replace(real, session="x", candidates=(Candidate("pigeon"),)))
        peer.hear()

    with serving(zoo(2)) as server, Peer.call(server.endpoint) as peer:
        real = peer.offered()
    with pretending(answer) as endpoint:
        (attempt,) = fill(target, [endpoint], IDENTITY, asking()).attempts

    assert attempt.reason is Reason.PROTOCOL_VIOLATION
    assert "transport" in attempt.detail


def test_a_server_that_vanishes_after_the_offer_is_noticed_at_once() -> None:
    with serving(zoo(2)) as server, Peer.call(server.endpoint) as peer:
        real = peer.offered()

    def answer(peer: Peer) -> None:
        if isinstance(peer.hear(), Hello):  # the control connection, not a lane
            peer.say(real)
            peer.hear()

    start = monotonic()
    with pretending(answer) as endpoint:
        (attempt,) = fill(zoo(1), [endpoint], IDENTITY, asking()).attempts

    assert attempt.reason is Reason.CONNECTION_LOST
    assert monotonic() - start < SOON_S


def test_lanes_that_cannot_be_opened_do_not_outlast_the_session() -> None:
    # A port that takes one connection and drops every further SYN, as a full backlog does.
    with serving(zoo(2)) as server, Peer.call(server.endpoint) as peer:
        real = peer.offered()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        endpoint = Endpoint("127.0.0.1", listener.getsockname()[1])
        fillers: list[socket.socket] = []

        def answer() -> None:
            with Peer(listener.accept()[0]) as control:
                assert isinstance(control.hear(), Hello)
                for _ in range(3):
                    fillers.append(socket.socket())
                    fillers[-1].setblocking(False)
                    fillers[-1].connect_ex((endpoint.host, endpoint.port))
                control.say(real)
                control.hear()

        answering = threading.Thread(target=answer)
        answering.start()
        deadlines = replace(FAST, connect_s=3, validate_s=1, stall_s=1)
        start = monotonic()
        outcome = fill(zoo(1), [endpoint], IDENTITY, asking(lanes=16, deadlines=deadlines))
        answering.join()
        for sock in fillers:
            sock.close()

    assert [a.reason for a in outcome.attempts] == [Reason.DEADLINE_PASSED]
    assert not outcome.weights_dirty
    assert monotonic() - start < 8


# -- two models that are not the same ------------------------------------------------------------


def test_another_identity_is_refused_with_the_field_and_both_values() -> None:
    target = zoo(1)
    before = contents(target)
    with serving(zoo(2), {"model": "llama", "dtype": "float32"}) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, asking())

    (attempt,) = outcome.attempts
    assert attempt.reason is Reason.IDENTITY_MISMATCH
    (difference,) = attempt.differences
    assert (difference.field, difference.mine, difference.theirs) == ("model", "tiny", "llama")
    assert "SOURCE" in difference.remedy
    assert not outcome.weights_dirty
    assert contents(target) == before


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({"a": (2,)}, {"a": (3,)}, ("a shape", "(2,)", "(3,)")),
        ({"a": (2, 3)}, {"a": (3, 2)}, ("a shape", "(2, 3)", "(3, 2)")),
        ({"a": (2,), "b": (2,)}, {"b": (2,), "a": (2,)}, ("tensor 0 name", "a", "b")),
        ({"a": (2,), "b": (2,)}, {"a": (2,)}, ("tensor b", "float32", "(absent)")),
        ({"a": (2,)}, {"a": (2,), "b": (2,)}, ("tensor b", "(absent)", "float32")),
    ],
)
def test_another_set_of_tensors_is_refused_with_the_first_difference(
    mine: dict[str, tuple[int, ...]],
    theirs: dict[str, tuple[int, ...]],
    expected: tuple[str, str, str],
) -> None:
    target = module_of(**{n: random(*s) for n, s in mine.items()})
    with serving(module_of(**{n: random(*s) for n, s in theirs.items()})) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, asking())

    (attempt,) = outcome.attempts
    assert attempt.reason is Reason.MANIFEST_MISMATCH
    (difference,) = attempt.differences
    assert (difference.field, difference.mine, difference.theirs) == expected
    assert not outcome.weights_dirty


def test_another_dtype_or_order_in_memory_with_the_same_bytes_is_refused() -> None:
    plain = random(4, 4, dtype=torch.bfloat16)
    for other, field in ((plain.view(torch.float16), "w dtype"), (plain.t(), "w stride")):
        with serving(module_of(w=other)) as server:
            (attempt,) = fill(
                module_of(w=plain.clone()), [server.endpoint], IDENTITY, asking()
            ).attempts
        assert attempt.reason is Reason.MANIFEST_MISMATCH
        assert attempt.differences[0].field == field


def test_no_transport_in_common_is_said_with_both_lists() -> None:
    with serving(zoo(1), transports=("tcp",)) as server:
        (attempt,) = fill(zoo(2), [server.endpoint], IDENTITY, asking("gloo")).attempts

    assert attempt.reason is Reason.NOTHING_IN_COMMON
    assert "transports: server has tcp, client has gloo" in attempt.detail


# -- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        ("right", "right", Reason.VERIFIED),
        ("wrong", "right", Reason.AUTH_FAILED),
        (None, "right", Reason.AUTH_REQUIRED),
        ("right", None, Reason.AUTH_FAILED),
    ],
)
def test_tokens_must_be_the_same(
    mine: str | None, theirs: str | None, reason: Reason, captured: Lines
) -> None:
    source, target = zoo(1), zoo(2)
    with serving(source, token=Secret(theirs) if theirs else None) as server:
        options = asking(token=Secret(mine) if mine else None)
        outcome = fill(target, [server.endpoint], IDENTITY, options)

    assert [a.reason for a in outcome.attempts] == [reason]
    assert outcome.ok == (contents(target) == contents(source)) == (reason is Reason.VERIFIED)
    assert "right" not in str(captured)
