"""Filling over another transport than the best one, when that one cannot begin."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
from torch import nn

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.failure import TransferError
from netloader.io.transports import TRANSPORTS, BusyError, Capabilities
from netloader.io.transports.tcp import TcpReceiver, TcpSender
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    SOON_S,
    asking,
    contents,
    module_of,
    random,
    serving,
)


def model(seed: int) -> nn.Module:
    return module_of(big=random(100_000, seed=seed), norm=random(1000, seed=seed + 1))


@dataclass
class Refusing:
    """Either end of a transport whose library refuses this pair of processes at some point."""

    at: str
    log: list[str]
    """What was done with the ends."""

    def rendezvous(self) -> dict[str, str]:
        return {"key": "of the sender"}

    def answered(self, answer: Mapping[str, str]) -> None:
        self.log.append(f"answered {answer['key']}")
        self._refuse("answered")

    def attach(self, index: int, lane: socket.socket) -> None:
        del index
        lane.close()

    def open(self, rendezvous: Mapping[str, str]) -> dict[str, str]:
        self.log.append(f"opened with {rendezvous['key']}")
        self._refuse("open")
        return {"key": "of the receiver"}

    def join(self) -> None:
        self._refuse("join")

    def run(self, segments: object, lanes: int = 0) -> int:
        del segments, lanes
        self._refuse("run")
        return 0

    def _refuse(self, at: str) -> None:
        if self.at == at:
            raise TransferError(Reason.TRANSFER_FAILED, "error code is 1 (parameter error)")

    def abort(self) -> None:
        pass

    def end(self) -> None:
        self.log.append("ended")


class RefusingTransport:
    """A transport of such ends, and its attachment."""

    name = "refusing"
    capabilities = Capabilities()

    def __init__(self, at: str) -> None:
        self.at = at
        self.log: list[str] = []

    def obstacle(self) -> str:
        return ""

    def attach(self, weights: object) -> Self:
        del weights
        return self

    def sender(self, setup: object) -> Refusing:
        del setup
        self.log.append("made")
        return Refusing(self.at, self.log)

    def receiver(self, setup: object) -> Refusing:
        return self.sender(setup)

    def detach(self) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with TRANSPORTS.registered(RefusingTransport("run")):
        yield "refusing"


@pytest.mark.parametrize("at", ["open", "answered", "join"])
def test_a_transport_that_cannot_be_opened_costs_no_session(
    at: str, captured: list[dict[str, Any]]
) -> None:
    source, target, transport = model(1), model(50), RefusingTransport(at)
    both = (transport.name, "tcp")
    with (
        TRANSPORTS.registered(transport),
        serving(source, transports=both, max_clients=1) as server,
    ):
        outcome = fill(target, [server.endpoint], IDENTITY, asking(transports=both))
        server.close()

    assert [attempt.reason for attempt in outcome.attempts] == [Reason.VERIFIED]
    assert contents(target) == contents(source)
    assert transport.log.count("made") == transport.log.count("ended") == 2
    assert "opened with of the sender" in transport.log
    assert ("answered of the receiver" in transport.log) == (at != "open")
    told = [line for line in captured if line["event"] == "netloader.transport.refused"]
    assert told
    assert {line["severity"] for line in told} == {"DEBUG"}
    assert {line["netloader.transport"] for line in told} == {"refusing"}


def test_what_was_not_chosen_is_ended_before_bytes_move(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, spare = model(1), model(50), RefusingTransport("never")
    both, before = ("tcp", spare.name), list[list[str]]()
    run = TcpSender.run

    def noting(sender: TcpSender, segments: Sequence[Segment], lanes: int) -> int:
        before.append([*spare.log])
        return run(sender, segments, lanes)

    monkeypatch.setattr(TcpSender, "run", noting)
    with TRANSPORTS.registered(spare), serving(source, transports=both) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking(transports=both)).ok

    assert before == [["made", "ended"]]
    assert contents(target) == contents(source)


def test_a_receiver_that_was_given_up_is_ended_before_the_next_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transport, before = RefusingTransport("open"), list[list[str]]()
    both, open_ = (transport.name, "tcp"), TcpReceiver.open

    def noting(receiver: TcpReceiver, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        before.append([*transport.log])
        return open_(receiver, rendezvous)

    monkeypatch.setattr(TcpReceiver, "open", noting)
    with TRANSPORTS.registered(transport), serving(model(1), transports=both) as server:
        assert fill(model(50), [server.endpoint], IDENTITY, asking(transports=both)).ok

    assert before == [["made", "made", "opened with of the sender", "ended"]]


def test_when_no_candidate_can_be_opened_the_source_has_failed() -> None:
    with (
        TRANSPORTS.registered(RefusingTransport("open")),
        serving(model(1), transports=("refusing",)) as server,
    ):
        outcome = fill(model(50), [server.endpoint], IDENTITY, asking(transports=("refusing",)))

    (attempt,) = outcome.attempts
    assert (attempt.reason, attempt.detail) == (
        Reason.TRANSFER_FAILED,
        "error code is 1 (parameter error)",
    )
    assert not outcome.weights_dirty


def test_a_client_is_told_to_come_again_where_its_transport_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = [BusyError("another transfer has the communicator")]

    def answered(sender: TcpSender, answer: Mapping[str, str]) -> None:
        del sender, answer
        if busy:
            raise busy.pop()

    monkeypatch.setattr(TcpSender, "answered", answered)
    source, target = model(1), model(50)
    with serving(source, transports=("tcp",)) as server:
        patient = asking(transports=("tcp",), deadlines=replace(FAST, queue_s=SOON_S))
        outcome = fill(target, [server.endpoint], IDENTITY, patient)

    assert [attempt.reason for attempt in outcome.attempts] == [Reason.BUSY, Reason.VERIFIED]
    assert contents(target) == contents(source)


def test_what_fails_when_it_was_open_is_asked_for_over_tcp_once_more(refusing: str) -> None:
    source, target = model(1), model(50)
    both = (refusing, "tcp")
    with serving(source, transports=both, max_clients=1) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, asking(transports=both))
    assert outcome.ok
    assert contents(target) == contents(source)
    reasons = [a.reason for a in outcome.attempts if a.reason is not Reason.BUSY]
    assert reasons == [Reason.TRANSFER_FAILED, Reason.VERIFIED]
    assert {a.source for a in outcome.attempts} == {server.endpoint}


@pytest.mark.parametrize("asked", [("refusing",), ("tcp", "refusing")])
def test_tcp_is_not_tried_when_it_was_not_asked_for_or_has_failed(
    refusing: str, asked: tuple[str, ...]
) -> None:
    with serving(model(1), transports=(refusing,)) as server:
        outcome = fill(model(50), [server.endpoint], IDENTITY, asking(transports=asked))
    assert [a.reason for a in outcome.attempts] == [Reason.TRANSFER_FAILED]


def test_a_source_without_tcp_is_left_for_the_next_one(refusing: str) -> None:
    source, target = model(1), model(50)
    options = asking(transports=(refusing, "tcp"))
    with (
        serving(source, transports=(refusing,)) as first,
        serving(source, transports=("tcp",)) as second,
    ):
        outcome = fill(target, [first.endpoint, second.endpoint], IDENTITY, options)
    assert contents(target) == contents(source)
    reasons = [Reason.TRANSFER_FAILED, Reason.VERIFIED]
    assert [a.reason for a in outcome.attempts] == reasons
