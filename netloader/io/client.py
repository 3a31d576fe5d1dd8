"""Try sources in order until the weights are whole. Law: one session at a time, one ledger for all.

After a failure in the middle the next source is asked only for what is not verified yet. Sources
that answered busy are asked again until `Deadlines.queue_s` is over. A source with which another
transport could not even begin is asked for tcp at once, if tcp is among the transports: a library
may refuse what a connection can do, HCCL for instance two processes on one device. When no source
is left the outcome is FALLBACK with the whole history.
"""

import math
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from netloader.config import Deadlines, Endpoint, Secret
from netloader.errors import NetloaderError
from netloader.fsm.client import ClientSession, Wish
from netloader.fsm.effects import Verdict
from netloader.fsm.events import ConnectFailed
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Progress
from netloader.fsm.messages import Description, Purpose
from netloader.fsm.reasons import RETRYABLE, Reason
from netloader.fsm.states import State
from netloader.io.clock import monotonic
from netloader.io.cores import cores
from netloader.io.crew import ClientCrew, Crew, IdleCrew
from netloader.io.dialing import Dialer
from netloader.io.digests import ALGORITHMS
from netloader.io.driver import Link, Loop
from netloader.io.framing import sendable
from netloader.io.intake import Ledger
from netloader.io.observe import Observer
from netloader.io.reserve import EXHAUSTED
from netloader.io.transports import suited
from netloader.io.transports.tcp import TCP
from netloader.io.weights import Weights, WeightsError
from netloader.log import Logger, emit, get_logger

STOP_S = 10.0
"""How long an aborted transfer may take to be gone beyond the stall deadline, which ends every
wait there is: sockets take milliseconds, but gloo is not always woken when its peer was killed."""
LANES = min(2, max(1, cores() // 2))
"""One connection carries about 2 GiB/s. Measured on two cores, 1 GiB: 2.2 GiB/s with one lane and
1.5 with two, whose four threads share them; with cores to spare a second lane adds its own."""
SILENT_S = 1.0
"""A source that cost less, because it refuses connections, is asked again: it may be starting."""
MAX_RETRY_AFTER_S = 30.0
"""Longest pause a server may ask for between two tries."""


class UnsafeError(NetloaderError):
    """A transfer that was aborted may still write into the model: nobody may use or refill it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One session with one source. `nbytes` were verified in it, `seconds` were spent by state."""

    source: Endpoint
    reason: Reason
    detail: str
    nbytes: int
    seconds: Mapping[State, float]
    differences: tuple[Difference, ...] = ()

    @property
    def silent(self) -> bool:
        """Whether the source let time pass without an answer, as one more attempt would."""
        waited = self.reason in (Reason.UNREACHABLE, Reason.DEADLINE_PASSED)
        return waited and sum(self.seconds.values()) >= SILENT_S


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
    """Called with bytes verified and bytes in all, from the receiving threads."""
    silent: tuple[Attempt, ...] = ()
    """What `survey` has just found out: these sources are not asked again, because one that does
    not answer would cost its deadline twice. The attempts begin the history of the outcome."""
    logger: Logger = field(default_factory=lambda: get_logger("client"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How filling ended. `state` is DONE (every byte verified) or FALLBACK."""

    state: State
    reason: Reason
    attempts: tuple[Attempt, ...]
    nbytes: int
    """Bytes verified over all attempts."""
    weights_dirty: bool
    """Whether tensors may hold received bytes; after FALLBACK every one must be written again."""
    progress: Progress
    """What was verified, with its digests."""

    @property
    def ok(self) -> bool:
        """Whether the model now holds exactly the server's bytes."""
        return self.state is State.DONE

    @property
    def source(self) -> Endpoint | None:
        """The source that completed the model."""
        return self.attempts[-1].source if self.ok else None

    @property
    def seconds(self) -> Mapping[State, float]:
        """Seconds by state, over all attempts."""
        spent = dict.fromkeys(State, 0.0)
        for attempt in self.attempts:
            for state, seconds in attempt.seconds.items():
                spent[state] += seconds
        return spent

    def history(self) -> str:
        """Every attempt in one line each, for people."""
        return "; ".join(f"{a.source}: {a.reason.value} ({a.detail})" for a in self.attempts)


def fill(
    model: nn.Module | Weights,
    sources: Sequence[Endpoint | str],
    identity: Mapping[str, str] | Identity,
    options: ClientOptions | None = None,
) -> Outcome:
    """Fill all that a model is seen to hold from the first source that delivers.

    Blocks; never longer than the deadlines of each phase for each source, plus `queue_s`.
    `identity` must equal the server's field by field.

    Raises:
        WeightsError: the model has nothing to fill, or something that cannot travel, or a tensor in
            memory that cannot be written.
        ValueError: a source is not `host:port`.
        UnsafeError: an aborted transfer did not end; the tensors must not be used.
    """
    options = options or ClientOptions()
    weights = model if isinstance(model, Weights) else Weights.of(model)
    if not weights.manifest.nbytes:
        raise WeightsError("the model has no bytes to fill")
    weights.check_writable()
    endpoints = [s if isinstance(s, Endpoint) else Endpoint.parse(s) for s in sources]
    wish = Wish(
        purpose=Purpose.WEIGHTS,
        identity=sendable(identity if isinstance(identity, Identity) else Identity(identity)),
        manifest=weights.manifest,
        layouts=options.layouts,
        transports=options.transports or suited(weights.device.type, options.logger),
        digests=tuple(ALGORITHMS),
        lanes=options.lanes,
        token=options.token,
    )
    return _Filling(Ledger(weights, options.report), wish, options).run(endpoints)


class _Filling:
    """One call of `fill`."""

    def __init__(self, ledger: Ledger, wish: Wish, options: ClientOptions) -> None:
        self._ledger = ledger
        self._wish = wish
        self._options = options
        self._attempts = [*options.silent]
        self._over_tcp: set[Endpoint] = set()
        """Sources with which another transport could not begin."""
        self._dirty = False

    def run(self, endpoints: Sequence[Endpoint]) -> Outcome:
        patience = monotonic() + self._options.deadlines.queue_s
        silent = {attempt.source for attempt in self._attempts}
        round_ = [endpoint for endpoint in endpoints if endpoint not in silent]
        while round_:
            again: list[Endpoint] = []
            pause = MAX_RETRY_AFTER_S
            for endpoint in round_:
                verdict = self._ask(endpoint)
                if self._could_not_begin(endpoint, verdict):
                    self._over_tcp.add(endpoint)
                    verdict = self._ask(endpoint)
                if verdict.state is State.DONE:
                    return self._outcome(State.DONE, Reason.VERIFIED)
                if verdict.reason in RETRYABLE:
                    again.append(endpoint)
                    pause = min(pause, _sane(verdict.retry_after_s))
            left = patience - monotonic()
            if not again or left <= 0:
                break
            round_ = again
            self._wait(min(pause, left), again)
        return self._outcome(State.FALLBACK, Reason.NO_SOURCE)

    def _could_not_begin(self, endpoint: Endpoint, verdict: Verdict) -> bool:
        """Whether the last attempt failed in another transport than tcp, which is left to try.

        The source chooses the first transport that both sides have, so tcp is left where it is not
        the first that was asked for.
        """
        failed = verdict.reason is Reason.TRANSFER_FAILED and not self._attempts[-1].nbytes
        left = TCP.name in self._wish.transports[1:] and endpoint not in self._over_tcp
        return failed and left

    def _ask(self, endpoint: Endpoint) -> Verdict:
        number = len(self._attempts) + 1
        fields = {"netloader.source.attempt": number}
        where = {"network.peer.address": endpoint.host, "network.peer.port": endpoint.port}
        emit(self._options.logger, "netloader.source.tried", {**fields, **where})
        wish = replace(self._wish, progress=self._ledger.progress)
        if endpoint in self._over_tcp:
            wish = replace(wish, transports=(TCP.name,))
        deadlines = self._options.deadlines
        dialer = Dialer(endpoint, deadlines.connect_s)
        crew = ClientCrew(self._ledger, wish.lanes, dialer.dial, deadlines.stall_s)
        before = self._ledger.counted_bytes
        observer = Observer(self._options.logger, endpoint, fields)
        session = _converse(dialer, wish, crew, observer, deadlines)
        verdict = _verdict(session)
        self._dirty |= verdict.weights_dirty
        moved = self._ledger.counted_bytes - before
        self._attempts.append(_attempt(endpoint, verdict, moved, observer))
        return verdict

    def _wait(self, seconds: float, endpoints: Sequence[Endpoint]) -> None:
        fields = {
            "netloader.sources": ", ".join(map(str, endpoints)),
            "netloader.wait_s": round(seconds, 3),
        }
        emit(self._options.logger, "netloader.source.waiting", fields)
        threading.Event().wait(seconds)

    def _outcome(self, state: State, reason: Reason) -> Outcome:
        return Outcome(
            state=state,
            reason=reason,
            attempts=tuple(self._attempts),
            nbytes=self._ledger.verified_bytes,
            weights_dirty=self._dirty,
            progress=self._ledger.progress,
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """What sources said before a model is built.

    `sources` is the order in which to try them: the one that described itself, those not asked
    yet, those that did not answer well. `silent` are the attempts with those that let a deadline
    pass; give them to `fill` in `ClientOptions.silent`, so that none costs a second one.
    """

    description: Description | None
    sources: tuple[Endpoint, ...]
    silent: tuple[Attempt, ...] = ()


def survey(sources: Sequence[Endpoint], identity: Identity, options: ClientOptions) -> Survey:
    """Ask sources, in order, what they resolved when they loaded the model, until one says.

    Takes no place at the server. `identity` may name only what is known before a model is built.
    """
    wish = Wish(purpose=Purpose.DESCRIPTION, identity=identity, token=options.token)
    silent: list[Attempt] = []
    for number, endpoint in enumerate(sources):
        observer = Observer(options.logger, endpoint, {"netloader.source.attempt": number + 1})
        dialer = Dialer(endpoint, options.deadlines.connect_s)
        session = _converse(dialer, wish, IdleCrew(), observer, options.deadlines)
        verdict = _verdict(session)
        if session.description is not None and verdict.state is State.DONE:
            tried, untried = sources[:number], sources[number + 1 :]
            return Survey(session.description, (endpoint, *untried, *tried), tuple(silent))
        attempt = _attempt(endpoint, verdict, 0, observer)
        silent += [attempt] if attempt.silent else []
    return Survey(None, tuple(sources), tuple(silent))


def _attempt(endpoint: Endpoint, verdict: Verdict, nbytes: int, observer: Observer) -> Attempt:
    seconds = dict(observer.seconds)
    return Attempt(endpoint, verdict.reason, verdict.detail, nbytes, seconds, verdict.differences)


def _converse(
    dialer: Dialer, wish: Wish, crew: Crew, observer: Observer, deadlines: Deadlines
) -> ClientSession:
    """Run one session from connect to verdict on this thread."""
    session = ClientSession(wish, deadlines, secrets.token_hex(16), monotonic())
    try:
        loop = Loop()
    except OSError as error:  # out of file descriptors
        _cannot_connect(session, observer, f"this side: {error.strerror}; raise ulimit -n")
        return session
    link = Link(loop, session, crew, observer, None)

    def dial() -> None:
        try:
            sock = dialer.dial()
        except OSError as error:
            detail = error.strerror or type(error).__name__
            if error.errno in EXHAUSTED:
                detail = f"this side: {detail}; raise ulimit -n"
            loop.post(lambda: link.connect_failed(detail))
        else:
            if link.closed:  # too late: nobody turns this loop any more
                sock.close()
            loop.post(lambda: link.connected(sock))

    # A name look-up has no time-out of its own, so dialling must not hold up the session's clock.
    try:
        _start_thread(dial, link)
        loop.run(lambda: link.closed)
    finally:
        link.close()
        stopped = crew.join(deadlines.stall_s + STOP_S)
        loop.close()
    if not stopped:
        raise UnsafeError("an aborted transfer is still running; the tensors must not be used")
    return session


def _start_thread(dial: Callable[[], None], link: Link) -> None:
    try:
        threading.Thread(target=dial, name="netloader-dial", daemon=True).start()
    except RuntimeError as error:  # the process may have no more threads
        link.connect_failed(f"this side: {error}; raise pids.max")


def _cannot_connect(session: ClientSession, observer: Observer, detail: str) -> None:
    """End a session that has no loop to run in."""
    observer.saw(session, session.step(ConnectFailed(detail), monotonic()))
    observer.closed(session)


def _verdict(session: ClientSession) -> Verdict:
    """The session's verdict; one that ended without has hit a bug of ours, already logged."""
    if session.verdict is not None:
        return session.verdict
    return Verdict(State.FALLBACK, Reason.STOPPED, "internal error", session.touched)


def _sane(seconds: float) -> float:
    """A pause that a peer asked for, made harmless."""
    if not math.isfinite(seconds):
        return MAX_RETRY_AFTER_S
    return min(max(seconds, 0.1), MAX_RETRY_AFTER_S)
