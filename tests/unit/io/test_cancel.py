"""Cancelling `fill`, and limiting its time: at every point it ends soon, with a reason, cleanly."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from netloader import ClientOptions, Endpoint, Identity, Outcome, Reason, State
from netloader.fsm.messages import Begin, Hello, Lane, Offer, Reject, Request
from netloader.io.clock import monotonic
from netloader.io.describe import describe
from tests.support.sockets import blackhole
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    MIB,
    SOON_S,
    Peer,
    Source,
    asking,
    closed_port,
    contents,
    eventually,
    module_of,
    our_threads,
    pretending,
    random,
    sealed,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")
PROMPT_S = 5.0
"""A cancelled call ends within a second; the rest is for a busy machine. Everything that could end
it otherwise takes PATIENT."""
PATIENT = replace(
    FAST, connect_s=60, handshake_s=60, validate_s=60, stall_s=60, transfer_base_s=90, queue_s=60
)


def model(seed: int) -> nn.Module:
    return module_of(w=random(8 * MIB, seed=seed, dtype=torch.uint8))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert eventually(lambda: descriptors() <= before)


class Token:
    """A token that notes when it was set."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.at = 0.0

    def set(self) -> None:
        self.at = monotonic()
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self, outcome: Outcome) -> None:
        """After a call that this token ended."""
        assert monotonic() - self.at < PROMPT_S
        assert self.is_set()
        assert (outcome.state, outcome.reason) == (State.FALLBACK, Reason.STOPPED)


def patient(token: Token | None = None, transport: str = "tcp", **options: Any) -> ClientOptions:
    return asking(transport, **{"deadlines": PATIENT, "cancel": token, **options})


def when(condition: Callable[[], object], token: Token) -> threading.Thread:
    """Set a token as soon as a condition holds."""

    def wait() -> None:
        if eventually(condition):
            token.set()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def dialling() -> bool:
    return "netloader-dial" in our_threads()


def test_a_token_that_is_set_before_ends_the_call_before_any_source_is_asked() -> None:
    token, target = Token(), zoo(2)
    token.set()
    before = contents(target)
    with serving(zoo(1)) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, patient(token))

    token.check(outcome)
    assert outcome.attempts == ()
    assert not outcome.weights_dirty
    assert contents(target) == before


def test_while_a_source_swallows_packets() -> None:
    token = Token()
    with blackhole("127.0.0.1") as endpoint:
        setting = when(dialling, token)
        outcome = fill(zoo(1), [endpoint, closed_port()], IDENTITY, patient(token))
        token.check(outcome)
        assert eventually(lambda: not dialling())  # which would last connect_s
        setting.join()

    assert [(a.source, a.reason) for a in outcome.attempts] == [(endpoint, Reason.STOPPED)]
    assert "cancelled" in outcome.attempts[0].detail


def test_while_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    token, asked, answer = Token(), threading.Event(), threading.Event()

    def lookup(*_: Any, **__: Any) -> list[Any]:
        asked.set()
        answer.wait(SOON_S)
        raise OSError(11, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    setting = when(asked.is_set, token)
    token.check(fill(zoo(1), ["slow.example:1"], IDENTITY, patient(token)))
    answer.set()
    setting.join()


@pytest.mark.parametrize("stubborn", [False, True], ids=["polite", "hung"])
def test_in_the_handshake(stubborn: bool) -> None:
    token, said, over = Token(), list[Any](), threading.Event()

    def silent(peer: Peer) -> None:
        assert isinstance(peer.hear(), Hello)
        token.set()
        said.append(peer.hear())
        if stubborn:
            over.wait(SOON_S)  # it neither answers nor closes

    with pretending(silent) as endpoint:
        outcome = fill(zoo(1), [endpoint, closed_port()], IDENTITY, patient(token))
        token.check(outcome)
        over.set()

    assert [a.reason for a in outcome.attempts] == [Reason.STOPPED]
    (reject,) = said
    assert isinstance(reject, Reject)
    assert reject.reason == "stopped", "the server is told"


@pytest.mark.parametrize("point", [Hello, Request])
def test_after_the_offer_and_after_the_request(point: type) -> None:
    source, target, token, heard = Source(zoo(1), 64 * KIB), zoo(2), Token(), list[Any]()
    before = contents(target)

    def stall(peer: Peer) -> None:
        message = peer.hear()
        if isinstance(message, Lane):
            peer.hear()
            return
        if point is Hello:
            peer.say(source.offer)
        else:
            peer.opens(source.offer)
        while not isinstance(message, point):
            message = peer.hear()
        token.set()
        while message is not None:
            heard.append(message)
            message = peer.hear()

    with pretending(stall) as endpoint:
        outcome = fill(target, [endpoint], IDENTITY, patient(token))
    token.check(outcome)

    assert not outcome.weights_dirty
    assert contents(target) == before
    assert isinstance(heard[-1], Reject)


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_in_a_transfer_after_which_the_model_can_be_filled(
    transport: str, captured: list[dict[str, Any]]
) -> None:
    source, target, token = model(1), model(2), Token()

    def stopped() -> bool:
        return any(line.get("netloader.state.to") == "fallback" for line in captured)

    def first(done: int, total: int) -> None:
        if not token.is_set():  # what is left would otherwise arrive before the token is seen
            token.set()
            assert done < total
            assert eventually(stopped)

    with serving(source) as server:
        options = patient(token, transport, report=first, lanes=1)
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, options)
        token.check(outcome)
        assert outcome.weights_dirty
        assert outcome.nbytes > 0
        assert [a.reason for a in outcome.attempts] == [Reason.STOPPED]
        again = patient(None, transport)
        assert fill(target, [server.endpoint], IDENTITY, again).ok

    assert contents(target) == contents(source)


def test_in_a_transfer_of_which_no_byte_comes(captured: list[dict[str, Any]]) -> None:
    token, told = Token(), list[Any]()
    with serving(model(1)) as server, Peer.call(sealed(server).endpoint) as peer:
        offer = peer.offered()
    assert isinstance(offer, Offer)

    def stall(peer: Peer) -> None:
        message = peer.hear()
        if isinstance(message, Lane):
            told.append(peer.hear())
            return
        peer.opens(offer)
        peer.hear()
        peer.say(Begin())
        assert eventually(lambda: "netloader.transfer.started" in {x["event"] for x in captured})
        token.set()
        peer.hear()

    with pretending(stall) as endpoint:
        outcome = fill(model(2), [endpoint], IDENTITY, patient(token, lanes=2))
        token.check(outcome)

    assert told == [None, None], "both lanes are closed"
    assert outcome.nbytes == 0


def test_while_waiting_for_a_busy_source() -> None:
    token = Token()

    def busy(peer: Peer) -> None:
        peer.hear()
        peer.say(Reject("busy", "full", (), 30.0))
        peer.hear()
        token.set()

    with pretending(busy) as endpoint:
        outcome = fill(zoo(1), [endpoint], IDENTITY, patient(token))
    token.check(outcome)
    assert [a.reason for a in outcome.attempts] == [Reason.BUSY]


def test_after_the_end_it_changes_nothing() -> None:
    token, target = Token(), zoo(2)
    with serving(zoo(1)) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, patient(token))
        token.set()

    assert outcome.ok
    assert contents(target) == contents(zoo(1))


def test_a_plain_event_is_a_token() -> None:
    event = threading.Event()

    def silent(peer: Peer) -> None:
        peer.hear()
        event.set()
        peer.hear()

    with pretending(silent) as endpoint:
        options = asking(deadlines=PATIENT, cancel=event)
        assert fill(zoo(1), [endpoint], IDENTITY, options).reason is Reason.STOPPED


def test_the_whole_call_may_take_timeout_s_and_no_longer() -> None:
    def silent(peer: Peer) -> None:
        peer.hear()
        peer.hear()

    begun = monotonic()
    with pretending(silent) as endpoint, pretending(silent) as unasked:
        options = patient(timeout_s=0.5)
        outcome = fill(zoo(1), [endpoint, unasked], IDENTITY, options)
    took = monotonic() - begun

    assert 0.5 <= took < PROMPT_S
    assert outcome.reason is Reason.DEADLINE_PASSED
    (attempt,) = outcome.attempts
    assert (attempt.source, attempt.reason) == (endpoint, Reason.DEADLINE_PASSED)
    assert "timeout_s of 0.5 s" in attempt.detail


def test_a_call_within_its_time_ends_as_without_a_limit() -> None:
    target = zoo(2)
    with serving(zoo(1)) as server:
        assert fill(target, [server.endpoint], IDENTITY, patient(timeout_s=60)).ok
    assert contents(target) == contents(zoo(1))


def test_a_source_that_describe_had_no_time_for_is_not_called_silent() -> None:
    def silent(peer: Peer) -> None:
        peer.hear()
        peer.hear()

    with pretending(silent) as endpoint:
        options = patient(timeout_s=1.5)
        found = describe([endpoint, Endpoint("127.0.0.1", 9)], Identity({}), options)

    assert found.silent == ()
    assert found.sources == (endpoint, Endpoint("127.0.0.1", 9))
