"""The loop and its links: one thread, no busy waiting, and an end to every connection."""

import select
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.fsm.effects import PrepareOffer
from netloader.fsm.events import Connected, Event, OfferReady, OfferRefused, TransferFailed
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Candidate, Description, Purpose, Reject
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.states import State
from netloader.fsm.terms import CatalogEntry
from netloader.io.clock import monotonic
from netloader.io.driver import Link, Loop
from netloader.io.observe import Observer
from netloader.io.worker import Order, SessionWorker
from netloader.log import get_logger
from netloader.wire import Connection, connection
from netloader.wire.frames import encode
from tests.unit.io.drivers import LOOPS
from tests.unit.io.helpers import FAST, IDENTITY, MIB, SOON_S, Peer, connected_pair, hello

Lines = list[dict[str, Any]]
NewLoop = Callable[..., Loop]
OFFERING = CatalogEntry(Identity(IDENTITY), Manifest(()), MIB, ("raw",), ("tcp",), ("blake3",))


class Idle(SessionWorker):
    """Notes orders and aborts; a test posts the events itself."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Order] = []
        self.aborts = 0

    def begin(self, order: Order) -> None:
        self.orders.append(order)

    def do(self, order: Order) -> Event:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        self.aborts += 1


class Wire:
    """A server's link in a loop on this thread, and its peer."""

    def __init__(self, loop: Loop, entry: CatalogEntry = OFFERING) -> None:
        self.loop = loop
        self.worker = Idle()
        near, far = connected_pair()
        self.peer = Peer(near)
        self.session = ServerSession((entry,), FAST, "s" * 32, "n" * 32, monotonic())
        observer = Observer(get_logger("test"), Endpoint("127.0.0.1", 1), {})
        self.link = Link(self.loop, Connection(self.session, observer.saw), self.worker, observer)
        self.far = far
        self.link.connected(far)

    def until(self, condition: Any) -> None:
        """Turn the loop until a condition holds."""
        ticking = threading.Event()

        def tick() -> None:
            while not ticking.wait(0.01):
                self.loop.post(lambda: None)

        thread = threading.Thread(target=tick)
        thread.start()
        end = monotonic() + SOON_S
        self.loop.run(lambda: condition() or monotonic() > end)
        ticking.set()
        thread.join()
        assert condition()

    def close(self) -> None:
        self.link.close()
        self.loop.close()
        self.peer.sock.close()


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    """What makes a loop: each test is run with every kind of it."""
    kind: NewLoop = LOOPS[request.param]
    return kind


@pytest.fixture
def wire(new_loop: NewLoop) -> Iterator[Wire]:
    made = Wire(new_loop())
    yield made
    made.close()


# -- the loop ------------------------------------------------------------------------------------


def test_calls_posted_by_other_threads_run_on_the_loops_thread_in_order(new_loop: NewLoop) -> None:
    loop, ran = new_loop(), list[tuple[int, str]]()

    def work() -> None:
        for number in range(1000):
            loop.post(lambda n=number: ran.append((n, threading.current_thread().name)))  # type: ignore[misc]

    thread = threading.Thread(target=work)
    thread.start()
    loop.run(lambda: len(ran) == 1000)
    thread.join()
    loop.close()

    assert ran == [(n, threading.current_thread().name) for n in range(1000)]


def test_a_post_to_a_closed_loop_is_harmless(new_loop: NewLoop) -> None:
    loop = new_loop()
    loop.close()
    loop.post(lambda: None)


class Alarm:
    def __init__(self, at: float) -> None:
        self.at: float | None = at
        self.rang_at = 0.0

    def next_timeout(self) -> float | None:
        return self.at

    def handle_timeout(self, now: float) -> None:
        self.at, self.rang_at = None, now


def test_members_are_called_when_their_time_has_come_and_not_before(new_loop: NewLoop) -> None:
    loop = new_loop()
    alarm, late = Alarm(monotonic() + 0.1), Alarm(monotonic() + 3600)
    due = alarm.at
    loop.members |= {alarm, late}
    loop.run(lambda: alarm.at is None)
    loop.close()

    assert due is not None
    assert due <= alarm.rang_at < due + SOON_S
    assert late.rang_at == 0.0


def test_a_socket_is_watched_changed_and_forgotten(new_loop: NewLoop) -> None:
    loop, seen = new_loop(), list[int]()
    near, far = connected_pair()
    with near, far:
        near.sendall(b"x")
        loop.watch(far, selectors.EVENT_READ, seen.append)
        loop.run(lambda: len(seen) > 0)
        loop.watch(far, selectors.EVENT_WRITE, seen.append)
        loop.run(lambda: selectors.EVENT_WRITE in seen)
        loop.watch(far, 0, seen.append)
        loop.watch(far, 0, seen.append)
        count = len(seen)
        done: list[int] = []
        loop.post(lambda: done.append(1))
        loop.run(lambda: bool(done))
        assert len(seen) == count
    loop.close()


def fail() -> None:
    raise ZeroDivisionError


def test_an_error_of_a_callback_goes_to_the_handler(new_loop: NewLoop) -> None:
    troubles: list[Exception] = []
    guarded = new_loop(troubles.append)
    guarded.post(fail)
    guarded.run(lambda: bool(troubles))
    guarded.close()
    assert isinstance(troubles[0], ZeroDivisionError)


def test_an_error_of_a_callback_is_raised_without_a_handler() -> None:
    bare = Loop()
    bare.post(fail)
    with pytest.raises(ZeroDivisionError):
        bare.run(lambda: False)
    bare.close()


# -- a link --------------------------------------------------------------------------------------


def test_orders_go_to_the_worker_and_its_events_come_back_from_any_thread(wire: Wire) -> None:
    wire.peer.say(hello())
    wire.until(lambda: wire.worker.orders)
    ready = OfferReady((Candidate("tcp"),), ())
    threading.Thread(target=wire.worker.post, args=(ready,)).start()
    wire.until(lambda: wire.session.offered)

    assert wire.worker.orders == [PrepareOffer(("tcp",), "blake3", 0)]
    assert type(wire.peer.hear()).__name__ == "Offer"


def test_the_last_message_arrives_although_unread_bytes_are_left(wire: Wire) -> None:
    # Closing a socket with unread bytes resets the connection, and a reset eats what was sent.
    wire.peer.say(hello())
    wire.until(lambda: wire.worker.orders)
    wire.peer.sock.sendall(bytes(200_000))
    wire.until(lambda: wire.session.verdict is not None)
    answer = wire.peer.hear()

    assert type(answer).__name__ == "Reject"
    wire.peer.sock.close()
    wire.until(lambda: wire.link.closed)


def test_a_settled_link_waits_a_moment_for_the_peer_and_no_longer(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.2)
    wire.peer.say(replace(hello(), purpose=Purpose.DESCRIBE))
    wire.until(lambda: wire.session.verdict is not None)
    assert not wire.link.closed

    wire.until(lambda: wire.link.closed)

    assert wire.session.state is State.DONE
    assert wire.worker.aborts > 0


def test_a_large_answer_waits_for_a_slow_reader_without_blocking_the_loop(
    new_loop: NewLoop,
) -> None:
    facts = {f"fact {i}": "x" * 1000 for i in range(20_000)}  # 20 MB: more than sockets hold
    wire = Wire(new_loop(), replace(OFFERING, facts=facts))
    try:
        wire.peer.say(replace(hello(), purpose=Purpose.DESCRIBE))
        wire.until(lambda: wire.session.verdict is not None)
        turned: list[int] = []
        wire.loop.post(lambda: turned.append(1))
        wire.until(lambda: turned)

        heard: list[Any] = []
        reader = threading.Thread(target=lambda: heard.append(wire.peer.hear()))
        reader.start()
        wire.until(lambda: heard)
        reader.join()
    finally:
        wire.close()

    assert isinstance(heard[0], Description)
    assert heard[0].facts == facts


def test_a_bug_of_ours_ends_its_session_and_is_logged_with_its_stack(
    wire: Wire, captured: Lines
) -> None:
    wire.link.handle(OfferRefused(Reason.BUSY, "nobody asked for an offer"))

    assert wire.link.closed
    assert wire.peer.hear() is None
    (line,) = [line for line in captured if line["event"] == "netloader.driver.error"]
    assert line["severity"] == "ERROR"
    assert "OfferRefused cannot happen in HANDSHAKE" in str(line["exc_info"])


def test_a_closed_link_takes_no_more_and_closes_what_comes_late(wire: Wire) -> None:
    closes: list[int] = []
    wire.link.on_close = lambda: closes.append(1)
    wire.link.close()
    wire.link.close()
    wire.link.handle(Connected())
    wire.link.connect_failed("too late")
    near, far = connected_pair()
    wire.link.connected(far)

    assert closes == [1]
    assert far.fileno() == -1
    assert wire.session.verdict is None
    near.close()


def test_frames_above_64_kib_are_refused_at_the_header_before_the_proof(wire: Wire) -> None:
    big = replace(hello(), transports=("x" * 70_000,))
    wire.peer.sock.sendall(encode(big)[:9])
    wire.until(lambda: wire.session.verdict is not None)

    answer = wire.peer.hear()
    assert type(answer).__name__ == "Reject"


def test_an_end_of_the_connection_is_an_event(wire: Wire) -> None:
    wire.peer.sock.shutdown(socket.SHUT_WR)
    wire.until(lambda: wire.session.verdict is not None)

    verdict = wire.session.verdict
    assert verdict is not None
    assert verdict.reason is Reason.CONNECTION_LOST


def test_a_link_still_reads_after_a_send_failed(wire: Wire) -> None:
    # The deadline of the state would end this too, but only after its twenty seconds here.
    wire.peer.say(hello())
    wire.until(lambda: wire.worker.orders)
    wire.peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.peer.sock.close()
    wire.link.handle(OfferReady((Candidate("tcp"),), ()))
    wire.until(lambda: wire.session.verdict is not None)

    verdict = wire.session.verdict
    assert verdict is not None
    assert verdict.reason is Reason.CONNECTION_LOST


def test_what_this_side_finds_out_does_not_overtake_the_peers_word(wire: Wire) -> None:
    # The peer ends the session; a moment later our transfer fails of it. The verdict names the
    # cause, although a frame takes two reads and both were there in one turn of the loop.
    class Echoing(Idle):
        def begin(self, order: Order) -> None:
            super().begin(order)
            wire.peer.say(Reject("not_serving", "the server is closing"))
            select.select([wire.far], [], [], SOON_S)
            self.post(TransferFailed(Reason.TRANSFER_FAILED, "the echo"))

    wire.worker.__class__ = Echoing
    wire.peer.say(hello())
    wire.until(lambda: wire.session.verdict is not None)
    assert wire.session.verdict is not None
    assert (wire.session.verdict.reason, wire.session.verdict.by_peer) == (Reason.NOT_SERVING, True)
