"""The client's work on a thread of its own, with the server's at the other end."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from torch import nn

from netloader.errors import LocalProtocolError
from netloader.fsm.effects import ChooseSegments, JoinTransport, OpenTransport, StartTransfer
from netloader.fsm.events import (
    Ask,
    Finish,
    OfferReady,
    TransferFailed,
    Transferred,
    TransportJoined,
    TransportReady,
)
from netloader.fsm.reasons import Reason
from netloader.io.client_worker import ClientWorker
from netloader.io.published import PublishedModel
from netloader.io.store.ledger import Ledger
from netloader.io.store.module import ModuleStore
from netloader.io.transports.tcp import Tcp
from netloader.io.worker import ServerWorker
from tests.unit.io.helpers import FAST, SOON_S, connected_pair, contents, offer_of, zoo
from tests.unit.io.workers import PREPARE, SESSION, Heard

pytestmark = pytest.mark.usefixtures("sessions_end")


class Two:
    """A server's and a client's worker, joined by lanes."""

    def __init__(self, published: PublishedModel, target: nn.Module, lanes: int) -> None:
        self.server = ServerWorker((published,), SESSION, FAST)
        self.ready = Heard(self.server).after(PREPARE)
        assert isinstance(self.ready, OfferReady)
        entry = published.entry
        self.nbytes = entry.manifest.nbytes
        self.offer = offer_of(entry.manifest, self.ready.segment_digests, entry.segment_bytes)
        ledger = Ledger(ModuleStore.of(target), lambda done, total: None)
        self.client = ClientWorker(ledger, lanes, self._connect, SOON_S)
        self.far: list[socket.socket] = []

    def _connect(self) -> socket.socket:
        near, far = connected_pair()
        self.far.append(far)
        return near

    def open(self, client: "Heard", server: "Heard") -> None:
        """Open and join tcp on both sides."""
        assert client.after(OpenTransport(self.offer, "tcp")) == TransportReady("tcp")
        self.join_lanes()
        for heard in (client, server):
            assert heard.after(JoinTransport("tcp")) == TransportJoined("tcp")

    def join_lanes(self) -> None:
        """Do what the listener does: read each lane's first words and pass it on."""
        for index, far in enumerate(self.far):
            size = len(far.recv(1, socket.MSG_PEEK)) and 9
            header = far.recv(size, socket.MSG_WAITALL)
            far.recv(int.from_bytes(header[5:], "big"), socket.MSG_WAITALL)
            self.server.attach(index, far)


@pytest.fixture
def two(published: PublishedModel) -> Iterator[Callable[..., Two]]:
    made: list[Two] = []

    def make(target: nn.Module, lanes: int = 1) -> Two:
        made.append(Two(published, target, lanes))
        return made[-1]

    yield make
    for pair in made:
        pair.client.close()
        pair.server.close()
        for far in pair.far:
            far.close()


def test_both_workers_move_what_was_asked_for(two: Callable[..., Two]) -> None:
    target = zoo(50)
    pair = two(target, lanes=2)
    client, server = Heard(pair.client), Heard(pair.server)
    pair.open(client, server)
    everything = StartTransfer(tuple(range(len(pair.offer.segment_digests))), 2)

    pair.server.begin(everything)
    received = client.after(everything)

    assert received == server.events.get(timeout=SOON_S)
    assert received == Transferred(pair.nbytes)
    assert contents(target) == contents(zoo(1))


def test_requests_follow_each_other_and_only_the_last_one_settles(
    two: Callable[..., Two], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, settled = zoo(50), list[int]()
    pair = two(target)
    client, server = Heard(pair.client), Heard(pair.server)
    pair.open(client, server)
    monkeypatch.setattr(ModuleStore, "complete", lambda store: settled.append(1))
    count = len(pair.offer.segment_digests)
    assert count > 1
    everything = tuple(range(count))
    there = frozenset(everything)
    assert client.after(ChooseSegments(everything, 1, there)) == Ask(everything)

    for order in (StartTransfer((0,), 1), StartTransfer(tuple(range(1, count)), 1)):
        assert settled == []
        pair.server.begin(order)
        assert client.after(order) == server.events.get(timeout=SOON_S)
        assert client.after(ChooseSegments((), 2, there)) == Finish()

    assert settled == [1]
    assert contents(target) == contents(zoo(1))


def test_a_transport_for_one_request_refuses_the_second(
    two: Callable[..., Two], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tcp, "capabilities", replace(Tcp.capabilities, repeatable=False))
    pair = two(zoo(50))
    client, server = Heard(pair.client), Heard(pair.server)
    pair.open(client, server)
    pair.server.begin(StartTransfer((0,), 1))
    client.after(StartTransfer((0,), 1))
    assert isinstance(server.events.get(timeout=SOON_S), Transferred)

    told = server.after(StartTransfer((1,), 1))

    assert isinstance(told, TransferFailed)
    assert "one request in a session" in told.detail


def test_a_client_worker_that_was_aborted_opens_nothing(two: Callable[..., Two]) -> None:
    pair = two(zoo(50))
    pair.client.abort()

    assert Heard(pair.client).after(OpenTransport(pair.offer, "tcp")) == TransferFailed(
        Reason.TRANSFER_FAILED, "aborted"
    )
    assert pair.far == []


@pytest.mark.parametrize("aborted", ["client", "server"])
def test_an_abort_ends_a_transfer(two: Callable[..., Two], aborted: str) -> None:
    pair = two(zoo(50))
    client, server = Heard(pair.client), Heard(pair.server)
    pair.open(client, server)
    order = StartTransfer(tuple(range(len(pair.offer.segment_digests))), 1)
    ours, worker = (client, pair.client) if aborted == "client" else (server, pair.server)

    worker.abort()

    assert isinstance(ours.after(order), TransferFailed)


def test_a_transfer_before_the_transport_is_open_is_our_own_mistake(
    two: Callable[..., Two],
) -> None:
    heard = Heard(two(zoo(50)).client)

    assert isinstance(heard.after(StartTransfer((0,), 1)), TransferFailed)
    assert isinstance(heard.troubles[0], LocalProtocolError)
