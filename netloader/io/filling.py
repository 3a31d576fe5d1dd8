"""One call of `fill`, in the loop of any driver: carries out what its fetch decides.

The sessions with all sources live in one loop, and so does the fetch: their workers report to it by
`post`, and it answers each of them (see `asking`). So no lock protects the fetch, and what a worker
waits for never waits for that worker.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from netloader.config import Endpoint, FolderEndpoint
from netloader.errors import UnsafeError
from netloader.fsm.client_session import ClientSession
from netloader.fsm.directory import Directory
from netloader.fsm.events import StopRequested  # noqa: TC001 - the only one in this file
from netloader.fsm.fetch import Fetch, FetchOptions
from netloader.fsm.fetch_events import (
    Busy,
    CancelRequested,
    Conclude,
    Dial,
    Drop,
    FetchEffect,
    FetchEvent,
    Finish,
    Offered,
    Reported,
    Request,
    SegmentVerified,
    SourceEnded,
    SourceFailed,
    SourcesFound,
    Spare,
    Wait,
)
from netloader.fsm.reasons import RETRYABLE
from netloader.fsm.states import State
from netloader.fsm.terms import FetchSpec, places
from netloader.io.asking import Asking
from netloader.io.client_worker import ClientWorker
from netloader.io.clock import monotonic
from netloader.io.conversation import Conversation, verdict_of
from netloader.io.dialing import Dialer
from netloader.io.driver import Loop, Reactor
from netloader.io.observe import Observer
from netloader.io.options import ClientOptions
from netloader.io.outcome import Outcome, attempt_of
from netloader.io.own_folder import transports_to
from netloader.io.populating import Populating
from netloader.io.relay import Relay
from netloader.io.saying import Saying
from netloader.io.source_session import SourceSession, why_dropped
from netloader.io.stopping import Stop
from netloader.io.store.ledger import Ledger
from netloader.io.transports import Attachments
from netloader.io.transports.tcp import TCP
from netloader.log import emit


def _is_peer(source: Endpoint) -> bool:
    """Whether another process serves a source, so that it takes a place there."""
    return not isinstance(source, FolderEndpoint)


class Filling:
    """All sessions of one call.

    A driver makes these calls, in this order:

    1. `check_resumed`, on any thread: it may take long, and ends soon after `stop` does;
    2. `begin` in its loop; then it turns the loop until `over`. `cancel` ends that early;
    3. `close` in the loop, `join` on any thread, also after an error of its own;
    4. `outcome`.

    All else is for the thread of the loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        spec: FetchSpec,
        options: ClientOptions,
        stop: Stop,
        endpoints: Sequence[Endpoint],
        resumed: Outcome | None,
        relay: Relay | None,
    ) -> None:
        self._relay = relay
        self.stop = stop
        self.over = False
        """Whether nothing of any session runs, or the call failed."""
        self._resumed = resumed
        self._ledger = ledger
        self._spec = spec
        self._options = options
        self._attempts = [*options.silent]
        silent = {attempt.source for attempt in self._attempts}
        own = places((spec.serves_at,))
        asked = (endpoint for endpoint in endpoints if endpoint not in silent)
        self._sources = Directory(sorted(asked, key=_is_peer), never=(*own, *silent))
        self._dirty = resumed is not None and resumed.weights_dirty
        self._attachments = Attachments(ledger.store)
        self._populating = Populating(ledger.store, lambda: ledger.verified_bytes)
        deadlines = options.deadlines
        fetching = FetchOptions(options.parallel, deadlines.queue_s, deadlines.stall_s)
        self._fetch = Fetch(fetching, monotonic())
        self._sessions: dict[int, SourceSession] = {}
        self._numbers = len(self._attempts)
        self._waits = 0
        self._say = Saying(options.logger, self._sources)
        self._loop: Reactor | None = None
        self._no_loop: OSError | None = None
        self._todo: deque[FetchEffect] = deque()
        self._performing = False
        self._stopped: StopRequested | None = None
        self._look_at = -math.inf
        self._finish: Finish | None = None
        self._error: Exception | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    # -- for drivers -----------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Do all of it on this thread."""
        self.check_resumed()
        try:
            loop = Loop(self.failed)
        except OSError as error:  # out of file descriptors
            self.begin_without(error)
            self.join()
            return self.outcome()
        try:
            self.begin(loop)
            loop.run(lambda: self.over)
        finally:
            self.close()
            try:
                self.join()
            finally:
                loop.close()
        return self.outcome()

    def check_resumed(self) -> None:
        """Find out what the store still holds of the outcome that is resumed. Blocks."""
        if self._resumed is not None:
            self._ledger.resume(self._resumed.progress, lambda: self.stop.request() is not None)

    def begin(self, loop: Reactor) -> None:
        """Ask the first sources, in a loop whose errors go to `failed`."""
        self._loop = loop
        loop.members.add(self)
        self._start()
        if self._options.feed is not None and not self.over:
            heard = partial(self._heard, loop)
            self._unsubscribe = self._options.feed.subscribe(heard)

    def begin_without(self, error: OSError) -> None:
        """There is no loop: no source can be asked, and the outcome says why."""
        self._no_loop = error
        self._start()

    def cancel(self) -> None:
        """End the call, as its token would."""
        self.stop.cancel()
        self._stops()

    def failed(self, error: Exception) -> None:
        """Something in the loop raised: nothing of this call can go on."""
        if not isinstance(error, UnsafeError):
            emit(self._options.logger, "netloader.driver.error", exc_info=error)
        self._error = self._error or error
        self.over = True

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        due = self._fetch.next_timeout()
        times = min(self._look_at, math.inf if due is None else due)
        return None if self.over or times == math.inf else times

    def handle_timeout(self, now: float) -> None:
        """Look whether the call has to end, and have the fetch look at its sources."""
        if now >= self._look_at and self._stops():
            return
        for key in tuple(self._sessions):
            self._count(key)
        self._todo += self._fetch.handle_timeout(monotonic())
        self._perform()

    def close(self) -> None:
        """Close the sessions that still run; there are some after an error."""
        self._unsubscribe()
        for session in self._sessions.values():
            session.close()
        if self._loop is not None:
            self._loop.members.discard(self)

    def join(self) -> None:
        """Wait until nothing of any session runs, after `close`; then tell the relay. Blocks.

        Raises:
            UnsafeError: an aborted transfer did not end.
        """
        self._populating.end()
        unsafe: UnsafeError | None = None
        for session in self._sessions.values():
            try:
                session.join()
            except UnsafeError as error:
                unsafe = error
        if self._relay is not None:
            done = self._finish is not None and self._finish.state is State.DONE
            end = self._relay.keep if done else self._relay.give_up
            end()
        if unsafe is not None:
            raise unsafe

    def outcome(self) -> Outcome:
        """How the call ended.

        Raises:
            UnsafeError: an aborted transfer did not end.
        """
        if self._error is not None:
            raise self._error
        if self._finish is None:
            raise AssertionError("a call that is over has an end")
        self._attachments.detach()
        return Outcome(
            state=self._finish.state,
            reason=self._finish.reason,
            attempts=tuple(self._attempts),
            nbytes=self._ledger.verified_bytes,
            weights_dirty=self._dirty,
            progress=self._ledger.progress,
        )

    # -- what the fetch hears --------------------------------------------------------------------

    def _start(self) -> None:
        self._fetch = Fetch(self._fetch.options, monotonic())  # its patience begins now
        if not self._stops():
            known = range(len(self._sources))
            mine = frozenset(key for key in known if not _is_peer(self._sources[key]))
            self._tell(SourcesFound(tuple(known), mine))

    def _stops(self) -> bool:
        """Have the fetch end, if it is time for that; whether it is."""
        request = self.stop.request()
        self._look_at = math.inf if request else self.stop.next_look(monotonic())
        if request and self._stopped is None:
            self._stopped = request
            self._tell(CancelRequested(request.reason))
        return request is not None

    def _post(self, key: int) -> Callable[[Reported], None]:
        """What takes the reports of one session, from any thread."""
        loop = self._loop
        if loop is None:
            return lambda event: None  # noqa: ARG005 - a session that never begins has none
        return lambda event: loop.post(partial(self._reported, key, event))

    def _reported(self, key: int, event: Reported) -> None:
        session = self._sessions.get(key)
        if session is None:  # it said so while it ended
            return
        if isinstance(event, Offered):
            self._populating.begin()
            self._find(session.conversation.session)
        self._count(key)
        self._tell(event)
        if isinstance(event, Offered) and self._fetch.sources[key].keeps_root:
            session.take()

    def _count(self, key: int) -> None:
        """Report the segments that a source has brought since the last report."""
        left = self._fetch.sources[key].assignment.left
        arrived = self._sessions[key].worker.arrived(left) if left else ()
        for segment in sorted(arrived):
            self._tell(SegmentVerified(key, segment))

    def _tell(self, event: FetchEvent) -> None:
        self._todo += self._fetch.step(event, monotonic())
        self._perform()

    # -- what the fetch wants --------------------------------------------------------------------

    def _perform(self) -> None:
        if self._performing:  # further up the stack
            return
        self._performing = True
        try:
            while self._todo:
                self._do(self._todo.popleft())
        finally:
            self._performing = False

    def _do(self, effect: FetchEffect) -> None:
        match effect:
            case Dial():
                self._dial_unless_over(effect)
            case Request(key, segments):
                self._sessions[key].ask(segments)
            case Conclude(key):
                self._sessions[key].conclude()
            case Drop(key):
                if key in self._sessions:
                    self._sessions[key].drop(self._stopped or why_dropped(self._fetch.sources[key]))
            case Wait() as wait:
                self._waits += 1
                self._say.waiting(wait, self._waits, self._fetch.patience_end)
            case Spare() as spare:
                self._say.spared(spare, self._fetch.root)
            case Finish():
                if effect.state is State.DONE and self._ledger.progress.missing():
                    raise AssertionError("a fetch is done when every segment is verified")
                self._finish = effect
                self.over = True

    def _dial_unless_over(self, dial: Dial) -> None:
        if self._stops():
            self._tell(SourceEnded(dial.source))
        elif dial.stepped_down:
            self._dial(dial.source, (TCP.name,))
        elif _is_peer(self._sources[dial.source]):
            self._dial(dial.source, self._spec.transports)
        else:
            self._dial(dial.source, transports_to(self._ledger.store.device.type))

    def _dial(self, key: int, transports: tuple[str, ...]) -> None:
        endpoint, options = self._sources[key], self._options
        self._numbers += 1
        fields = {"netloader.source.attempt": self._numbers}
        where = {"network.peer.address": endpoint.host, "network.peer.port": endpoint.port}
        emit(options.logger, "netloader.source.tried", {**fields, **where})
        progress = self._ledger.progress
        held = progress.digest_algorithm
        accepted = options.digest_algorithms((endpoint.host,), held)  # it may have been named later
        spec = replace(
            self._spec,
            token=options.token_for(endpoint),
            progress=progress,
            transports=transports,
            digest_algorithms=tuple(n for n in accepted if n in self._spec.digest_algorithms),
        )
        dialer = Dialer(endpoint, options.deadlines.connect_s, options.securing(endpoint))
        asking = Asking(key, self._ledger, self._post(key))
        worker = ClientWorker(
            *(self._ledger, spec.lanes, dialer.dial, options.deadlines.stall_s, self._attachments),
            owner=asking,
            rail=dialer.dial_rail,
            rails=options.rails if _is_peer(endpoint) else (),
        )
        observer = Observer(options.logger, endpoint, fields)
        conversation = Conversation(dialer, spec, worker, observer, options.deadlines)
        session = self._sessions[key] = SourceSession(endpoint, conversation, worker, asking)
        if self._loop is not None:
            session.begin(self._loop, partial(self._ended, key))
        elif self._no_loop is not None:
            conversation.cannot_begin(self._no_loop)
            self._ended(key)

    def _ended(self, key: int) -> None:
        """Nothing of a session runs any more."""
        self._count(key)
        session = self._sessions.pop(key)
        verdict = verdict_of(session.conversation.session)
        self._dirty |= verdict.weights_dirty
        moved = session.worker.verified_bytes
        seconds = session.conversation.observer.seconds
        attempt = attempt_of(session.endpoint, verdict, moved, seconds)
        self._attempts.append(attempt)
        self._options.over(attempt)
        self._take_up(attempt.elsewhere)
        self._find(session.conversation.session)
        left = TCP.name in session.conversation.session.later_candidates
        if verdict.reason in RETRYABLE:
            self._tell(Busy(key, verdict.retry_after_s))
        elif verdict.state is State.FALLBACK:
            self._tell(SourceFailed(key, verdict.reason, left))
        self._tell(SourceEnded(key))

    def _find(self, session: ClientSession) -> None:
        """Take up the sources that a source has named."""
        offered = places(session.offer.other_sources) if session.offer else ()
        named = session.verdict.other_sources if session.verdict else ()
        self._take_up((*offered, *named))

    def _heard(self, loop: Reactor, found: Sequence[Endpoint]) -> None:
        """Hear from the feed, on any thread."""
        loop.post(partial(self._take_up, tuple(found)))

    def _take_up(self, found: Sequence[Endpoint]) -> None:
        """Have the fetch ask sources too, as far as they are new."""
        if new := self._sources.take_up(found, self._fetch.room()):
            self._tell(SourcesFound(new))
