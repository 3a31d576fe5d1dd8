"""Try sources in order until the weights are whole. Law: one session at a time, one ledger for all.

After a failure in the middle the next source is asked only for what is not verified yet. Sources
that answered busy are asked again until `Deadlines.queue_s` is over. A source with which another
transport could not even begin is asked for tcp at once, if tcp is among the transports: a library
may refuse what a connection can do, HCCL for instance two processes on one device. When no source
is left the outcome is FALLBACK with the whole history.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

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
from netloader.fsm.messages import Description, Purpose
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import MAX_LANES, FetchSpec, places
from netloader.io.arguments import check_transports, identity_of, sources_of, weights_of
from netloader.io.asking import Asking
from netloader.io.client_worker import ClientWorker
from netloader.io.clock import monotonic
from netloader.io.conversation import Conversation, converse, verdict_of
from netloader.io.cores import cores
from netloader.io.dialing import Dialer
from netloader.io.observe import Observer
from netloader.io.outcome import Attempt, Outcome
from netloader.io.stopping import CancelToken, Stop
from netloader.io.store.digests import ALGORITHMS
from netloader.io.store.ledger import Ledger, Report
from netloader.io.store.module import ModuleStore
from netloader.io.transports import Attachments, suited
from netloader.io.transports.tcp import TCP
from netloader.io.worker import IdleWorker
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
    serves_at: Endpoint | str | None = None
    """Where this process will serve what it receives, for the source to name to other clients that
    it has no place for. None: nowhere."""
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
        check_type("cancel", self.cancel, CancelToken | None, "give a threading.Event")
        if self.timeout_s is not None:
            check_range("timeout_s", self.timeout_s, 0.0, LONGEST_S)
        check_type("silent", self.silent, tuple | list, "give what `describe` returned")
        for i, attempt in enumerate(self.silent):
            check_type(f"silent[{i}]", attempt, Attempt, "give what `describe` returned")
        check_type("logger", self.logger, Logger, "give what netloader.log.get_logger returns")


def fill(
    model: nn.Module | ModuleStore,
    sources: Sequence[Endpoint | str] | Endpoint | str,
    identity: Mapping[str, str] | Identity,
    options: ClientOptions | None = None,
) -> Outcome:
    """Fill all that a model is seen to hold from the first source that delivers.

    Blocks; never longer than the deadlines of each phase for each source, plus `queue_s`, and never
    longer than `options.timeout_s`. `options.cancel` ends it from any other thread. `sources` are
    tried in order; a single one needs no list. `identity` must equal the server's field by field;
    its field `role` says which of the server's models is wanted (see `Role`).

    Raises:
        TypeError: an argument is of a type that cannot be used; the message says what to give.
        ValueError: a source is not `host:port`, or no transport has a name in `transports`.
        WeightsError: the model has nothing to fill, or something that cannot travel, or a tensor in
            memory that cannot be written.
        UnsafeError: an aborted transfer did not end; the tensors must not be used.
    """
    return prepare(model, sources, identity, options).run()


def prepare(
    model: nn.Module | ModuleStore,
    sources: Sequence[Endpoint | str] | Endpoint | str,
    identity: Mapping[str, str] | Identity,
    options: ClientOptions | None,
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
    weights = weights_of(model)
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
    ledger = Ledger(weights, harmless(options.report, options.logger))
    return Filling(ledger, spec, options, stop, endpoints)


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


class Filling:
    """One call of `fill`, for any driver."""

    def __init__(
        self,
        ledger: Ledger,
        spec: FetchSpec,
        options: ClientOptions,
        stop: Stop,
        endpoints: Sequence[Endpoint],
    ) -> None:
        self.stop = stop
        self._ledger = ledger
        self._spec = spec
        self._options = options
        self._attempts = [*options.silent]
        silent = {attempt.source for attempt in self._attempts}
        self._sources = [endpoint for endpoint in endpoints if endpoint not in silent]
        self._dirty = False
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
            else:
                self.stop.pause(step)

    def steps(self) -> Generator[Conversation | float, None, Outcome]:
        """Yield what a driver has to do next: run a conversation, or wait some seconds."""
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
                        asking = Asking(fetch, key, self._ledger)
                        todo += yield from self._ask(asking, self._sources[key], stepped_down)
                case Wait() as wait:
                    waits += 1
                    yield self._say_waiting(wait, waits, fetch.patience_end)
                    if stopped := self._stopped():
                        todo += self._tell(fetch, stopped)
                    else:
                        todo += fetch.handle_timeout(max(monotonic(), wait.until))
                case Finish(state, reason):
                    return self._outcome(state, reason)
                case Request() | Conclude() | Drop():
                    pass  # of a session that has ended meanwhile

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
        self,
        asking: Asking,
        endpoint: Endpoint,
        over_tcp: bool,  # noqa: FBT001
    ) -> Generator[Conversation, None, list[FetchEffect]]:
        number = len(self._attempts) + 1
        fields = {"netloader.source.attempt": number}
        where = {"network.peer.address": endpoint.host, "network.peer.port": endpoint.port}
        emit(self._options.logger, "netloader.source.tried", {**fields, **where})
        spec = replace(self._spec, progress=self._ledger.progress)
        if over_tcp:
            spec = replace(spec, transports=(TCP.name,))
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
        self._attempts.append(_attempt(endpoint, verdict, moved, observer))
        # A source chooses the first transport that both sides have: tcp is left to try where it is
        # not the first that was asked for.
        left = TCP.name in self._spec.transports[1:]
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


@dataclass(frozen=True, slots=True)
class Described:
    """What sources said before a model is built.

    `sources` is the order in which to try them: the one that described itself, those not asked
    yet, those that did not answer well. `silent` are the attempts with those that let a deadline
    pass; give them to `fill` in `ClientOptions.silent`, so that none costs a second one.
    """

    description: Description | None
    sources: tuple[Endpoint, ...]
    silent: tuple[Attempt, ...] = ()


def describe(sources: Sequence[Endpoint], identity: Identity, options: ClientOptions) -> Described:
    """Ask sources, in order, what they resolved when they loaded the model, until one says.

    Takes no place at the server. `identity` may name only what is known before a model is built.
    `options.cancel` and `options.timeout_s` are as in `fill`, for this call.
    """
    stop = Stop(options.cancel, options.timeout_s)
    spec = FetchSpec(purpose=Purpose.DESCRIBE, identity=identity, token=options.token)
    silent: list[Attempt] = []
    for number, endpoint in enumerate(sources):
        fields = {"netloader.source.attempt": number + 1, "netloader.purpose": "describe"}
        observer = Observer(options.logger, endpoint, fields)
        dialer = Dialer(endpoint, options.deadlines.connect_s)
        conversation = Conversation(dialer, spec, IdleWorker(), observer, options.deadlines, stop)
        converse(conversation)
        session = conversation.session
        verdict = verdict_of(session)
        if session.description is not None and verdict.state is State.DONE:
            tried, untried = sources[:number], sources[number + 1 :]
            return Described(session.description, (endpoint, *untried, *tried), tuple(silent))
        if stop.request() is not None:  # which does not show that the source is silent
            break
        attempt = _attempt(endpoint, verdict, 0, observer)
        silent += [attempt] if attempt.silent else []
    return Described(None, tuple(sources), tuple(silent))


def _attempt(endpoint: Endpoint, verdict: Verdict, nbytes: int, observer: Observer) -> Attempt:
    seconds = dict(observer.seconds)
    return Attempt(endpoint, verdict.reason, verdict.detail, nbytes, seconds, verdict.differences)
