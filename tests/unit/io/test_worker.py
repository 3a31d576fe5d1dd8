"""Work on a thread of its own: an order in, one event out, whatever happens."""

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from torch import nn

from netloader.errors import LocalProtocolError
from netloader.fsm.effects import (
    ChooseSegments,
    JoinTransport,
    OpenTransport,
    PrepareOffer,
    StartTransfer,
)
from netloader.fsm.events import (
    Ask,
    Event,
    Finish,
    OfferReady,
    OfferRefused,
    TransferFailed,
    Transferred,
    TransportJoined,
    TransportReady,
)
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.io.client_worker import ClientWorker
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.ledger import Ledger
from netloader.io.store.module import ModuleStore
from netloader.io.transports import TransferError
from netloader.io.transports.tcp import Tcp
from netloader.io.worker import IdleWorker, Order, ServerWorker, SessionWorker
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    SOON_S,
    connected_pair,
    contents,
    offer_of,
    zoo,
)

PREPARE = PrepareOffer(("tcp",), "blake3", 0)
SESSION = "s" * 32


@dataclass
class Heard:
    """What a worker reported."""

    worker: SessionWorker
    events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)
    troubles: list[Exception] = field(default_factory=list)
    made: ClassVar[list[SessionWorker]] = []

    def __post_init__(self) -> None:
        self.made.append(self.worker)
        self.worker.post = self.events.put
        self.worker.trouble = self.troubles.append

    def after(self, order: Order) -> Event:
        """Give an order and wait for its event."""
        self.worker.begin(order)
        event = self.events.get(timeout=SOON_S)
        assert self.events.empty()
        return event


@pytest.fixture(autouse=True)
def sessions_end() -> Iterator[None]:
    """Ends the session of every worker of a test."""
    yield
    while Heard.made:
        worker = Heard.made.pop()
        worker.close()
        worker.join(SOON_S)


class Scripted(SessionWorker):
    """Does what a test says."""

    def __init__(self, work: Callable[[], Event]) -> None:
        super().__init__()
        self._work_of_test = work
        self.left: Exception | None = None
        self.ends: list[str] = []
        self.aborts = 0

    def do(self, order: Order) -> Event:
        return self._work_of_test()

    def end(self) -> None:
        self.ends.append(threading.current_thread().name)
        if self.left is not None:
            raise self.left

    def abort(self) -> None:
        self.aborts += 1


# -- every worker ----------------------------------------------------------------------------------


def test_all_orders_and_the_end_are_carried_out_on_one_thread() -> None:
    threads: list[threading.Thread] = []

    def work() -> Event:
        threads.append(threading.current_thread())
        return Transferred(7)

    worker = Scripted(work)
    heard = Heard(worker)
    assert [heard.after(PREPARE), heard.after(PREPARE)] == [Transferred(7)] * 2
    assert worker.ends == []
    worker.close()

    assert worker.join(SOON_S)
    assert len(set(threads)) == 1
    assert worker.ends == [threads[0].name] == ["netloader-worker"]
    assert worker.aborts == 1


def test_a_worker_that_had_nothing_to_do_ends_nothing() -> None:
    worker = Scripted(lambda: Transferred(7))
    worker.close()

    assert worker.join(0)
    assert worker.ends == []


def test_a_failed_transfer_is_reported_with_its_reason() -> None:
    def work() -> Event:
        raise TransferError(Reason.TRANSFER_STALLED, "no byte moved")

    heard = Heard(Scripted(work))

    assert heard.after(PREPARE) == TransferFailed(Reason.TRANSFER_STALLED, "no byte moved")
    assert heard.troubles == []


def test_a_bug_in_a_worker_ends_the_session_and_logs_its_stack() -> None:
    bug = ZeroDivisionError("secret detail")

    def work() -> Event:
        raise bug

    heard = Heard(Scripted(work))

    assert heard.after(PREPARE) == TransferFailed(
        Reason.TRANSFER_FAILED, "internal: ZeroDivisionError"
    )
    assert heard.troubles == [bug]


def test_closing_aborts_and_joining_tells_whether_the_thread_is_gone() -> None:
    let_go = threading.Event()

    def work() -> Event:
        let_go.wait(SOON_S)
        return Transferred(0)

    worker = Scripted(work)
    assert worker.join(0)
    worker.begin(PREPARE)
    worker.close()

    assert worker.aborts == 1
    assert not worker.join(0.01)
    let_go.set()
    assert worker.join(SOON_S)


def test_a_worker_for_questions_carries_out_nothing() -> None:
    worker = IdleWorker()
    worker.close()

    with pytest.raises(LocalProtocolError, match="PrepareOffer"):
        worker.do(PREPARE)


# -- the server's --------------------------------------------------------------------------------


@pytest.fixture
def published() -> PublishedModel:
    options = ServerOptions(segment_bytes=64 * KIB, max_clients=1)
    made = publish(ModuleStore.of(zoo(1)), Identity(IDENTITY), options)
    made.seal()
    return made


def test_a_place_is_taken_with_the_offer_and_given_back_at_the_end(
    published: PublishedModel,
) -> None:
    worker = ServerWorker((published,), SESSION, FAST)
    ready = Heard(worker).after(PREPARE)

    assert isinstance(ready, OfferReady)
    assert ready.segment_digests == published.digests(0)
    assert not published.admit()
    worker.close()
    worker.close()
    assert published.admit()
    assert not published.admit()


def test_without_a_place_the_offer_is_refused_for_now(published: PublishedModel) -> None:
    assert published.admit()
    refused = Heard(ServerWorker((published,), SESSION, FAST)).after(PREPARE)

    assert isinstance(refused, OfferRefused)
    assert (refused.reason, refused.detail) == (Reason.BUSY, "all 1 places are taken")
    assert refused.retry_after_s > 0


def test_a_refused_client_gives_no_place_back_that_it_did_not_take(
    published: PublishedModel,
) -> None:
    assert published.admit()
    worker = ServerWorker((published,), SESSION, FAST)
    Heard(worker).after(PREPARE)
    worker.close()

    assert not published.admit()


def test_withdrawn_weights_are_not_offered(published: PublishedModel) -> None:
    published.withdraw("weights were updated")
    refused = Heard(ServerWorker((published,), SESSION, FAST)).after(PREPARE)

    assert refused == OfferRefused(Reason.NOT_SERVING, "weights were updated")


def test_weights_withdrawn_while_a_client_waits_for_digests_are_not_offered() -> None:
    made = publish(ModuleStore.of(zoo(1)), Identity(IDENTITY), ServerOptions())
    worker = ServerWorker((made,), SESSION, FAST)
    heard = Heard(worker)
    worker.begin(PREPARE)
    made.withdraw("the engine sleeps")
    refused = heard.events.get(timeout=SOON_S)
    worker.close()

    assert refused == OfferRefused(Reason.NOT_SERVING, "the engine sleeps")


def test_a_session_that_ended_before_its_place_takes_none(published: PublishedModel) -> None:
    worker = ServerWorker((published,), SESSION, FAST)
    worker.published = published
    worker.close()

    assert isinstance(worker.do(PREPARE), OfferRefused)
    assert published.admit()


def test_the_published_that_was_asked_for_is_the_one_that_is_prepared(
    published: PublishedModel,
) -> None:
    other = publish(ModuleStore.of(zoo(2)), Identity(IDENTITY), ServerOptions())
    other.seal()
    worker = ServerWorker((published, other), SESSION, FAST)
    ready = Heard(worker).after(PrepareOffer(("tcp",), "blake3", 1))

    assert isinstance(ready, OfferReady)
    assert (ready.segment_digests, worker.published) == (other.digests(0), other)
    assert published.quiet(0)
    assert not other.quiet(0)
    worker.close()
    assert other.quiet(SOON_S)


def test_nothing_is_read_for_a_transfer_that_starts_after_the_fence(
    published: PublishedModel,
) -> None:
    worker = ServerWorker((published,), SESSION, FAST)
    heard = Heard(worker)
    heard.after(PREPARE)
    heard.after(JoinTransport("tcp"))
    published.withdraw("weights are updated")

    told = heard.after(StartTransfer((0,), 1))
    worker.close()

    assert told == TransferFailed(Reason.NOT_SERVING, "weights are updated")
    assert heard.troubles == []


def test_lanes_are_closed_before_the_offer_and_after_the_end(published: PublishedModel) -> None:
    worker = ServerWorker((published,), SESSION, FAST)
    pairs = [connected_pair() for _ in range(2)]
    worker.attach(0, pairs[0][1])
    Heard(worker).after(PREPARE)
    worker.close()
    worker.attach(0, pairs[1][1])

    assert [far.fileno() for _, far in pairs] == [-1, -1]
    for near, _ in pairs:
        near.close()


def test_a_transfer_before_an_offer_is_our_own_mistake(published: PublishedModel) -> None:
    heard = Heard(ServerWorker((published,), SESSION, FAST))

    assert isinstance(heard.after(StartTransfer((0,), 1)), TransferFailed)
    assert isinstance(heard.troubles[0], LocalProtocolError)


# -- the client's --------------------------------------------------------------------------------


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


def test_a_worker_whose_end_fails_reports_that_and_does_not_join() -> None:
    worker = Scripted(lambda: Transferred(7))
    worker.left = TransferError(Reason.TRANSFER_STALLED, "a receive is still under way")
    troubles: list[Exception] = []
    worker.trouble = troubles.append
    events: queue.Queue[Event] = queue.Queue()
    worker.post = events.put

    worker.begin(PREPARE)

    assert events.get(timeout=SOON_S) == Transferred(7)
    worker.close()
    assert not worker.join(SOON_S)
    assert troubles == [worker.left]
