"""Work on a thread of its own: an order in, one event out, whatever happens."""

import queue
import threading
from collections.abc import Callable

import pytest

from netloader.errors import LocalProtocolError
from netloader.fsm.effects import JoinTransport, PrepareOffer, StartTransfer
from netloader.fsm.events import Event, OfferReady, OfferRefused, TransferFailed, Transferred
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.module import ModuleStore
from netloader.io.transports import TransferError
from netloader.io.worker import IdleWorker, Order, ServerWorker, SessionWorker
from tests.unit.io.helpers import ALGORITHM, FAST, IDENTITY, SOON_S, connected_pair, zoo
from tests.unit.io.workers import PREPARE, SESSION, Heard

pytestmark = pytest.mark.usefixtures("sessions_end")


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


# -- the server's --------------------------------------------------------------------------------


def test_a_place_is_taken_with_the_offer_and_given_back_at_the_end(
    published: PublishedModel,
) -> None:
    worker = ServerWorker((published,), SESSION, FAST)
    ready = Heard(worker).after(PrepareOffer(("tcp",), ALGORITHM, 0))

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
    ready = Heard(worker).after(PrepareOffer(("tcp",), ALGORITHM, 1))

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
