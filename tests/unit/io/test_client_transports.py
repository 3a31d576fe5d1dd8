"""Filling over another transport than the best one, when that one cannot begin."""

import socket
from collections.abc import Iterator
from typing import Self

import pytest
from torch import nn

from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.failure import TransferError
from netloader.io.transports import TRANSPORTS, Capabilities
from tests.unit.io.helpers import IDENTITY, asking, contents, module_of, random, serving


def model(seed: int) -> nn.Module:
    return module_of(big=random(100_000, seed=seed), norm=random(1000, seed=seed + 1))


class Refusing:
    """Either end of a transport whose library refuses this pair of processes."""

    def rendezvous(self) -> dict[str, str]:
        return {}

    def answered(self, answer: object) -> None:
        del answer

    def attach(self, index: int, lane: socket.socket) -> None:
        del index, lane

    def open(self, rendezvous: object) -> dict[str, str]:
        del rendezvous
        return {}

    def run(self, segments: object, lanes: int = 0) -> int:
        del segments, lanes
        raise TransferError(Reason.TRANSFER_FAILED, "error code is 1 (parameter error)")

    def abort(self) -> None:
        pass

    def end(self) -> None:
        pass


class RefusingTransport:
    """A transport of such ends, and its attachment."""

    name = "refusing"
    capabilities = Capabilities()

    def obstacle(self) -> str:
        return ""

    def attach(self, weights: object) -> Self:
        del weights
        return self

    def sender(self, setup: object) -> Refusing:
        del setup
        return Refusing()

    def receiver(self, setup: object) -> Refusing:
        del setup
        return Refusing()

    def detach(self) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with TRANSPORTS.registered(RefusingTransport()):
        yield "refusing"


def test_what_a_library_refuses_goes_over_tcp(refusing: str) -> None:
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
    reasons = [Reason.TRANSFER_FAILED, Reason.NOTHING_IN_COMMON, Reason.VERIFIED]
    assert [a.reason for a in outcome.attempts] == reasons
