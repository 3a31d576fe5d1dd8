"""Fill a model from its sources. All sessions share one ledger.

After a failure in the middle the next source is asked only for what is not verified yet. Sources
that answered busy are asked again until `Deadlines.queue_s` is over. A
transport that cannot be opened costs nothing but the time to find that out: the session goes on to
the next one. One that was open, and failed before a segment came, has ended its session: that
source is dialled once more, for tcp, if it offers tcp too. When no source is left the outcome is
FALLBACK with the whole history.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from netloader.config import (
    LONGEST_S,
    Deadlines,
    Endpoint,
    Secret,
    check_range,
    check_type,
    check_whole,
    texts,
)
from netloader.errors import WeightsError
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import Verdict
from netloader.fsm.fetch import Fetch, FetchOptions
from netloader.fsm.fetch_events import (
    CancelRequested,
    Conclude,
    Dial,
    Drop,
    FetchEffect,
    FetchEvent,
    Finish,
    Request,
    SourceEnded,
    SourcesFound,
    Wait,
)
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Progress
from netloader.fsm.messages import Purpose
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import MAX_LANES, FetchSpec, places
from netloader.io.arguments import (
    Weights,
    check_transports,
    identity_of,
    sources_of,
    store_of,
    weights_of,
)
from netloader.io.asking import Asking
from netloader.io.client_worker import ClientWorker
from netloader.io.clock import monotonic
from netloader.io.conversation import Conversation, converse, verdict_of
from netloader.io.cores import cores
from netloader.io.dialing import Dialer
from netloader.io.observe import Observer
from netloader.io.outcome import Attempt, Outcome, attempt_of
from netloader.io.relay import Relay, RelayHost, dialled_at
from netloader.io.stopping import CancelToken, Stop
from netloader.io.store.digests import ALGORITHMS
from netloader.io.store.ledger import Ledger, Report
from netloader.io.transports import Attachments, suited
from netloader.io.transports.tcp import TCP
from netloader.log import Logger, emit, get_logger
from netloader.wire.frames import sendable

LANES = min(2, max(1, cores() // 2))
"""One connection carries about 2 GiB/s. Measured on two cores, 1 GiB: 2.2 GiB/s with one lane and
1.5 with two, whose four threads share them; with cores to spare a second lane adds its own."""


MOST_SOURCES = 64
"""Sources that one call asks, those that other sources named included."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to fill a model. `transports` and `layouts` are in order of preference."""

    transports: tuple[str, ...] = ()
    """None: all that move memory of the device where the weights are to be, the fastest first."""
    layouts: tuple[str, ...] = ("raw",)
    lanes: int = LANES
    token: Secret | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    report: Callable[[int, int], None] = lambda done, total: None  # noqa: ARG005
    """Called with bytes verified and bytes in all, one call at a time and without a lock, from the
    receiving threads. Each call holds its own lane up, so it must return well within `stall_s`;
    counts that other lanes reach meanwhile are left out, but never the last one. What it raises is
    logged once and ignored."""
    cancel: CancelToken | None = None
    """A `threading.Event`, or whatever has `is_set()`: set it, from any thread, and the call ends
    within a second, with the reason STOPPED."""
    timeout_s: float | None = None
    """Seconds that the whole call may take, whatever `deadlines` allow: afterwards it ends within a
    second, with the reason DEADLINE_PASSED. None: no limit beside `deadlines`."""
    relay: RelayHost | None = None
    """A server of this process, as `listen` opens it, that serves each segment from the moment when
    it is verified, and the whole model afterwards."""
    serves_at: Endpoint | str | None = None
    """Where this process will serve what it receives, for the source to name to other clients that
    it has no place for. None: at the endpoint of `relay`, if other hosts can connect to it."""
    silent: tuple[Attempt, ...] = ()
    """What `describe` has just found out: these sources are not asked again, because one that does
    not answer would cost its deadline twice. The attempts begin the history of the outcome."""
    logger: Logger = field(default_factory=lambda: get_logger("client"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "transports", texts("transports", self.transports))
        object.__setattr__(self, "layouts", texts("layouts", self.layouts))
        check_whole("lanes", self.lanes, 1, MAX_LANES)
        check_type("token", self.token, Secret | None, "wrap the text: Secret(text)")
        check_type("deadlines", self.deadlines, Deadlines, "give a netloader.Deadlines")
        check_type("report", self.report, Callable, "give a callable that takes two integers")
        if isinstance(self.serves_at, str):
            object.__setattr__(self, "serves_at", Endpoint.parse(self.serves_at))
        remedy = "give a netloader.Endpoint or 'host:port'"
        check_type("serves_at", self.serves_at, Endpoint | None, remedy)
        check_type("relay", self.relay, RelayHost | None, "give what netloader.listen returned")
        if self.relay is not None and self.serves_at is None:
            object.__setattr__(self, "serves_at", dialled_at(self.relay.endpoint))
        check_type("cancel", self.cancel, CancelToken | None, "give a threading.Event")
        if self.timeout_s is not None:
            check_range("timeout_s", self.timeout_s, 0.0, LONGEST_S)
        check_type("silent", self.silent, tuple | list, "give what `describe` returned")
        for i, attempt in enumerate(self.silent):
            check_type(f"silent[{i}]", attempt, Attempt, "give what `describe` returned")
        check_type("logger", self.logger, Logger, "give what netloader.log.get_logger returns")


def fill(
    model: Weights,
    sources: Sequence[Endpoint | str] | Endpoint | str,
    identity: Mapping[str, str] | Identity,
    options: ClientOptions | None = None,
    *,
    resume: Outcome | None = None,
) -> Outcome:
    """Fill a model from the first source that delivers.

    `model` is a module, of which all is filled that it is seen to hold; a state dict, or pairs of
    names and tensors, whose tensors are filled in place and whose order is the server's; or a
    `Store`, such as `HostStore` and `FileStore`.

    Blocks; never longer than the deadlines of each phase for each source, plus `queue_s`, and never
    longer than `options.timeout_s`. `options.cancel` ends it from any other thread. `sources` are
    tried in order; a single one needs no list. `identity` must equal the server's field by field;
    its field `role` says which of the server's models is wanted (see `Role`).

    `resume` is what an earlier call returned for the same model, to ask only for what is missing.
    Segments that it calls verified are read from the model and hashed again, so those that have
    changed since are asked for as well. If the sources offer other weights, all is.

    Raises:
        TypeError: an argument is of a type that cannot be used; the message says what to give.
        ValueError: a source is not `host:port`, or no transport has a name in `transports`.
        WeightsError: the model has nothing to fill, or something that cannot travel, or a tensor in
            memory that cannot be written.
        UnsafeError: an aborted transfer did not end; the tensors must not be used.
    """
    return prepare(model, sources, identity, options, resume).run()


def prepare(
    model: Weights,
    sources: Sequence[Endpoint | str] | Endpoint | str,
    identity: Mapping[str, str] | Identity,
    options: ClientOptions | None,
    resume: Outcome | None,
) -> "Filling":
    """Look at a model that is to be filled. Arguments are those of `fill`.

    Raises:
        TypeError, ValueError, WeightsError: as `fill`.
    """
    check_type("options", options, ClientOptions | None, "give a netloader.ClientOptions")
    options = options or ClientOptions()
    stop = Stop(options.cancel, options.timeout_s)
    endpoints = sources_of(sources)
    known = identity_of(identity)
    check_transports(options.transports)
    check_type("resume", resume, Outcome | None, "give what an earlier fill returned")
    given = weights_of(model)
    weights = store_of(given)
    if not weights.manifest.nbytes:
        raise WeightsError("the model has no bytes to fill")
    weights.check_writable()
    spec = FetchSpec(
        purpose=Purpose.WEIGHTS,
        identity=sendable(known),
        manifest=weights.manifest,
        layouts=options.layouts,
        transports=options.transports or suited(weights.device.type, options.logger),
        digest_algorithms=tuple(ALGORITHMS),
        lanes=options.lanes,
        token=options.token,
        serves_at="" if options.serves_at is None else str(options.serves_at),
    )
    _ = weights.manifest.digest  # made once, and not on the loop's thread
    relay = None
    if options.relay is not None:
        relay = Relay(options.relay, given, weights, spec.identity, options.logger)
    ledger = Ledger(weights, harmless(options.report, options.logger), relay)
    return Filling(ledger, spec, options, stop, endpoints, resume, relay)


def harmless(report: Report, logger: Logger) -> Report:
    """A progress callback whose errors are ignored; the first one is logged, with its stack."""
    failed = threading.Event()

    def call(done: int, total: int) -> None:
        try:
            report(done, total)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it would end a lane only
            if not failed.is_set():
                failed.set()
                emit(logger, "netloader.report.failed", exc_info=error)

    return call


Step: TypeAlias = Conversation | float | Callable[[], None]


class Filling:
    """One call of `fill`, for any driver."""

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
        self._resumed = resumed
        self._ledger = ledger
        self._spec = spec
        self._options = options
        self._attempts = [*options.silent]
        silent = {attempt.source for attempt in self._attempts}
        self._sources = [endpoint for endpoint in endpoints if endpoint not in silent]
        self._dirty = resumed is not None and resumed.weights_dirty
        self._attachments = Attachments(ledger.store)

    def run(self) -> Outcome:
        """Do all of it on this thread."""
        steps = self.steps()
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            if isinstance(step, Conversation):
                converse(step)
            elif isinstance(step, float):
                self.stop.pause(step)
            else:
                step()

    def steps(self) -> Generator[Step, None, Outcome]:
        """Yield what a driver has to do next.

        It runs a conversation, or waits some seconds, or calls a function that may take long and
        ends soon after `stop` does.
        """
        if self._resumed is not None:
            yield partial(self._resume, self._resumed.progress)
        deadlines = self._options.deadlines
        fetch = Fetch(FetchOptions(1, deadlines.queue_s, deadlines.stall_s), monotonic())
        todo = deque(self._begin(fetch))
        waits = 0
        while True:
            match todo.popleft():
                case Dial(key, stepped_down):
                    if stopped := self._stopped():
                        todo += self._tell(fetch, stopped, SourceEnded(key))
                    else:
                        transports = (TCP.name,) if stepped_down else self._spec.transports
                        asking = Asking(fetch, key, self._ledger)
                        todo += yield from self._ask(asking, self._sources[key], transports)
                case Wait() as wait:
                    waits += 1
                    yield self._say_waiting(wait, waits, fetch.patience_end)
                    if stopped := self._stopped():
                        todo += self._tell(fetch, stopped)
                    else:
                        todo += fetch.handle_timeout(max(monotonic(), wait.until))
                case Finish(state, reason):
                    if self._relay is not None:
                        relay = self._relay
                        yield relay.keep if state is State.DONE else relay.give_up
                    return self._outcome(state, reason)
                case Request() | Conclude() | Drop():
                    pass  # of a session that has ended meanwhile

    def _resume(self, before: Progress) -> None:
        self._ledger.resume(before, lambda: self.stop.request() is not None)

    def _begin(self, fetch: Fetch) -> Iterable[FetchEffect]:
        if stopped := self._stopped():
            return self._tell(fetch, stopped)
        return self._tell(fetch, SourcesFound(tuple(range(len(self._sources)))))

    def _stopped(self) -> CancelRequested | None:
        """The end that the caller wants, if it is time."""
        request = self.stop.request()
        return None if request is None else CancelRequested(request.reason)

    def _tell(self, fetch: Fetch, *events: FetchEvent) -> list[FetchEffect]:
        return [effect for event in events for effect in fetch.step(event, monotonic())]

    def _ask(
        self, asking: Asking, endpoint: Endpoint, transports: tuple[str, ...]
    ) -> Generator[Conversation, None, list[FetchEffect]]:
        number = len(self._attempts) + 1
        fields = {"netloader.source.attempt": number}
        where = {"network.peer.address": endpoint.host, "network.peer.port": endpoint.port}
        emit(self._options.logger, "netloader.source.tried", {**fields, **where})
        spec = replace(self._spec, progress=self._ledger.progress, transports=transports)
        deadlines = self._options.deadlines
        dialer = Dialer(endpoint, deadlines.connect_s)
        worker = ClientWorker(
            *(self._ledger, spec.lanes, dialer.dial, deadlines.stall_s, self._attachments),
            owner=asking,
        )
        before = self._ledger.counted_bytes
        observer = Observer(self._options.logger, endpoint, fields)
        conversation = Conversation(dialer, spec, worker, observer, deadlines, self.stop)
        yield conversation
        verdict = verdict_of(conversation.session)
        self._dirty |= verdict.weights_dirty
        moved = self._ledger.counted_bytes - before
        self._attempts.append(attempt_of(endpoint, verdict, moved, observer.seconds))
        left = TCP.name in conversation.session.later_candidates
        found = self._found(conversation.session, verdict)
        return asking.ended(verdict, self._stopped(), another_transport=left, found=found)

    def _found(self, session: ClientSession, verdict: Verdict) -> tuple[int, ...]:
        """Take up the sources that a source has named; returns their numbers."""
        offered = places(session.offer.other_sources) if session.offer else ()
        known = {*self._sources, *places((self._spec.serves_at,))}
        known |= {attempt.source for attempt in self._attempts}
        named = dict.fromkeys(offered + verdict.other_sources)
        new = [place for place in named if place not in known]
        begin = len(self._sources)
        self._sources += new[: max(MOST_SOURCES - begin, 0)]
        return tuple(range(begin, len(self._sources)))

    def _say_waiting(self, wait: Wait, count: int, patience_end: float) -> float:
        """Log a pause, and return its seconds."""
        now = monotonic()
        seconds = max(wait.until - now, 0.0)
        fields = {
            "netloader.sources": ", ".join(str(self._sources[key]) for key in wait.sources),
            "netloader.wait_s": round(seconds, 3),
            "netloader.wait_count": count,
            "netloader.patience_s": round(patience_end - now, 3),
        }
        emit(self._options.logger, "netloader.source.waiting", fields)
        return seconds

    def _outcome(self, state: State, reason: Reason) -> Outcome:
        self._attachments.detach()
        return Outcome(
            state=state,
            reason=reason,
            attempts=tuple(self._attempts),
            nbytes=self._ledger.verified_bytes,
            weights_dirty=self._dirty,
            progress=self._ledger.progress,
        )
