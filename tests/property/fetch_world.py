"""A fetch, and all that may happen to it: sources that fail, lie, stall, come late or change.

The sources, their sessions and the memory are played; the fetch is real. Segments that a session
was asked for and has not delivered may be written by it until it has ended: no other may write
there, and nothing verified may lie there. Every edge and every node is checked for that.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from netloader.fsm.fetch import Fetch, FetchOptions
from netloader.fsm.fetch_events import (
    Available,
    Busy,
    CancelRequested,
    Completed,
    Conclude,
    Dial,
    Drop,
    FetchEffect,
    FetchEvent,
    Finish,
    Offered,
    Request,
    Root,
    SegmentVerified,
    SourceEnded,
    SourceFailed,
    SourcesFound,
    Spare,
    Stage,
    Wait,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.testing.laws import must

SEGMENTS: Final = 3
ALL: Final = frozenset(range(SEGMENTS))
OURS: Final = Root("blake3", 64, "ours", SEGMENTS)
OTHER: Final = Root("blake3", 64, "other", SEGMENTS)
PATIENT: Final = FetchOptions(parallel=2, queue_s=4.0, stall_s=2.0)
RETRY_S: Final = 3.0


class Script(NamedTuple):
    """What a source has when it is asked without a fault, and whether it gets the rest later."""

    root: Root = OURS
    has: frozenset[int] = ALL
    repeatable: bool = True
    """Whether its transport carries more than one request in a session."""
    own: bool = False
    """Whether it is a folder of this host, and no peer."""


class Session(NamedTuple):
    """What the driver has of a session. `asked` are segments that it may still write."""

    phase: str
    """dialling, open, stalled or ending."""
    root: Root | None = None
    has: frozenset[int] = frozenset()
    asked: frozenset[int] = frozenset()
    busy: bool = False
    """Whether a request is under way."""
    late: bool = False
    """Whether something was reported after the end."""
    requests: int = 0
    """1: there was one; more are not counted."""
    leased: bool = False
    """Whether the root that it offered was that of the fetch: then the store expects its bytes."""


class Choice(NamedTuple):
    """Something that may happen next. A fault costs one of the budget."""

    what: str
    source: int = -1
    segment: int = -1
    fault: bool = False


@dataclass
class World:
    """A fetch, its sources and the memory it fills."""

    fetch: Fetch
    scripts: Sequence[Script]
    sessions: dict[int, Session] = field(default_factory=dict)
    memory: dict[int, Root] = field(default_factory=dict)
    """By segment: whose bytes it holds, verified."""
    refused: frozenset[int] = frozenset()
    """Sources that answered busy when they were asked last."""
    lost: frozenset[int] = frozenset()
    """Sources that had a fault, or gave nothing for too long."""
    cancelled: bool = False
    late: frozenset[int] = frozenset()
    """Sources that are not known yet."""
    waits: bool = False
    finish: Finish | None = None
    rows: list[object] = field(default_factory=list)

    def fork(self) -> "World":
        twin = copy.copy(self)
        twin.fetch = copy.copy(self.fetch)
        twin.sessions, twin.memory = dict(self.sessions), dict(self.memory)
        return twin

    @property
    def key(self) -> tuple[object, ...]:
        """Two worlds with one key have one future."""
        fetch, now = self.fetch, self.fetch.now
        sources = tuple(
            (
                *(s.key, s.state, s.then, s.stepped_down, s.available, s.delivered, s.pace_s),
                *(
                    s.until - now,
                    s.assignment.left,
                    s.assignment.verified,
                    s.assignment.since - now,
                ),
                *(s.keeps_root, s.repeatable, s.own, s.spared),
            )
            for s in fetch.sources.values()
        )
        times = (max(fetch.patience_end - now, -1.0), fetch._progressed_at - now)
        held = (fetch.root, frozenset(fetch.verified), fetch.filled, fetch.outcome, fetch.over)
        outside = (frozenset(self.sessions.items()), frozenset(self.memory.items()))
        rest = (self.refused, self.lost, self.cancelled, self.late, self.finish)
        return (sources, times, held, outside, rest)

    # -- what may happen -------------------------------------------------------------------------

    def choices(self) -> Iterator[Choice]:
        """Everything that may happen, with and without a fault."""
        for key, session in self.sessions.items():
            yield from CHOICES[session.phase](key, session, self.scripts[key])
        if self.fetch.over:
            return
        for key in sorted(self.late):
            yield Choice("is found", key)
        if not self.cancelled:
            yield Choice("cancels", fault=True)
        if self.fetch.next_timeout() is not None:
            moving = any(s.phase != "stalled" for s in self.sessions.values()) or bool(self.late)
            yield Choice("time passes", fault=moving)

    def do(self, choice: Choice) -> None:
        """Let it happen."""
        key = choice.source
        if choice.what == "time passes":
            due = self.fetch.next_timeout()
            assert due is not None
            now = max(due, self.fetch.now)
            effects = self.fetch.handle_timeout(now)
            self.lost |= {effect.source for effect in effects if isinstance(effect, Drop)}
            self._perform(effects)
            again = self.fetch.next_timeout()
            must(again is None or again > now, "no-spin", "time that has passed is dealt with")
            return
        if choice.what == "cancels":
            self.cancelled = True
            self._tell(CancelRequested(Reason.STOPPED))
        elif choice.what == "is found":
            self.late -= {key}
            self._tell(self.found(key))
        else:
            self._session(choice, key, self.sessions[key])

    def _session(self, choice: Choice, key: int, session: Session) -> None:
        self.lost |= {key} if choice.fault else set()
        script = self.scripts[key]
        event: FetchEvent | None = None
        match choice.what:
            case "offers" | "offers another root":
                swapped = OURS if script.root is OTHER else OTHER
                root = script.root if choice.what == "offers" else swapped
                session = session._replace(phase="open", root=root, has=script.has)
                event = Offered(key, root, script.has, repeatable=script.repeatable)
            case "has more":
                session = session._replace(has=session.has | {choice.segment})
                event = Available(key, frozenset({choice.segment}))
            case "delivers":
                session = session._replace(asked=session.asked - {choice.segment})
                assert session.root is not None
                self.memory[choice.segment] = session.root
                event = SegmentVerified(key, choice.segment)
            case "completes":
                session = session._replace(busy=False)
                event = Completed(key)
            case "stalls":
                session = session._replace(phase="stalled")
            case "is busy":
                self.refused |= {key}
                session = session._replace(phase="ending")
                event = Busy(key, RETRY_S)
            case "says too late":
                session = session._replace(late=True)
                event = LATE[choice.segment](key)
            case "ends":
                del self.sessions[key]
                self._tell(SourceEnded(key))
                return
            case reason:
                session = session._replace(phase="ending")
                event = SourceFailed(key, Reason(reason), another_transport=True)
        self.sessions[key] = session
        if event is not None:
            self._tell(event)
            self._lease(key)

    def _lease(self, key: int) -> None:
        session = self.sessions[key]
        if session.root == self.fetch.root and session.phase == "open":
            self.sessions[key] = session._replace(leased=True)
        leased = [s for s in self.sessions.values() if s.leased]
        must(len({s.root for s in leased}) <= 1, "one-root", "a new one when the old has ended")

    def _tell(self, event: FetchEvent) -> None:
        before = (self.fetch.root, set(self.fetch.verified))
        self._perform(self.fetch.step(event, self.fetch.now))
        same = self.fetch.root == before[0]
        must(not same or self.fetch.verified >= before[1], "kept", "what is verified stays so")

    # -- what the fetch asks for -----------------------------------------------------------------

    def _perform(self, effects: tuple[FetchEffect, ...]) -> None:
        self.rows = list(self.fetch.rows)
        self.waits = False
        for effect in effects:
            must(self.finish is None, "one-finish", "nothing after the end")
            match effect:
                case Dial():
                    self._dial(effect)
                case Request():
                    self._request(effect)
                case Drop() | Conclude():
                    session = self.sessions[effect.source]
                    must(session.phase != "ending", "drop-once", "a session ends once")
                    well = isinstance(effect, Conclude)
                    spent = session.requests == 1 and not self.scripts[effect.source].repeatable
                    may_end = self._whole() or (spent and not session.busy)
                    must(not well or may_end, "conclude", "only when all is verified, or spent")
                    self.sessions[effect.source] = session._replace(phase="ending")
                case Spare():
                    must(not self.scripts[effect.source].own, "spared", "a peer is")
                    must(effect.own_pace_s <= effect.pace_s, "spared", "only one that is no faster")
                case Wait():
                    must(not self.sessions, "wait", "only when there is nothing else to do")
                    must(effect.until > self.fetch.now, "wait", "for a time to come")
                case Finish():
                    self.finish = effect

    def _dial(self, effect: Dial) -> None:
        key = effect.source
        must(key not in self.sessions, "one-session", "a source has one session at a time")
        early = self.fetch.now <= self.fetch.patience_end
        must(key not in self.refused or early, "patience", "it is not asked after patience ended")
        self.refused -= {key}
        self.sessions[key] = Session("dialling")

    def _request(self, effect: Request) -> None:
        session, wanted = self.sessions[effect.source], frozenset(effect.segments)
        must(session.phase in ("open", "stalled"), "as-offered", "asked in an open session")
        must(not session.busy, "one-request", "one at a time")
        others = [s for s in self.sessions.values() if s.busy]
        must(bool(wanted) or not others, "confirm", "nothing is asked for only to complete")
        must(wanted <= session.has, "as-offered", "only what it said it has")
        must(effect.segments == tuple(sorted(wanted)), "as-offered", "ascending, each once")
        must(session.root == self.fetch.root, "one-root", "only of the root that is fetched")
        again = self.scripts[effect.source].repeatable
        must(again or not session.requests, "repeatable", "once where it can carry one request")
        must(not wanted & self.fetch.verified, "kept", "what is verified is not asked for again")
        self._not_spared(effect.source)
        self.sessions[effect.source] = session._replace(asked=wanted, busy=True, requests=1)

    def _not_spared(self, key: int) -> None:
        """A peer is asked only if it is not known to be slower than an own source at work."""
        sources = self.fetch.sources
        own = (k for k, script in enumerate(self.scripts) if script.own and k in sources)
        at_work = [sources[k] for k in own if sources[k].state in (Stage.READY, Stage.RECEIVING)]
        pace_s = sources[key].pace_s
        faster = [o for o in at_work if o.key != key and o.pace_s <= pace_s < float("inf")]
        must(self.scripts[key].own or not faster, "spared", "not asked while an own one is as fast")

    def found(self, *keys: int) -> SourcesFound:
        """What is reported of sources that are found."""
        return SourcesFound(keys, frozenset(key for key in keys if self.scripts[key].own))

    def _whole(self) -> bool:
        return set(self.memory) == ALL and len({self.memory[i] for i in ALL}) == 1

    def holds(self) -> None:
        """What is true at any moment."""
        fetch = self.fetch
        inflight = [(s, i) for s in self.sessions.values() for i in s.asked]
        segments = [i for _, i in inflight]
        must(len(set(segments)) == len(segments), "one-writer", "each segment has one writer")
        must(not fetch.verified & set(segments), "no-late-byte", "none lands on what is verified")
        must(all(s.root == fetch.root for s, _ in inflight), "one-root", "no late byte of another")
        mine = {i for i, root in self.memory.items() if root == fetch.root}
        must(fetch.verified <= mine, "one-root", "what counts as verified is there")
        peers = [s for key, s in self.sessions.items() if not self.scripts[key].own]
        asked = [s for s in peers if s.phase in ("dialling", "ending") or s.busy]
        must(len(asked) <= fetch.options.parallel, "parallel", f"{len(asked)} are asked")
        ending = all(s.phase == "ending" for s in self.sessions.values())
        must(ending or not self.cancelled, "cancelled", "each session was told to end")
        if self.finish is None:
            must(not fetch.over, "one-finish", "it is over when it has said so")
            return
        must(not self.sessions, "quiet", "when it is over, nothing writes any more")
        done = self.finish.state is State.DONE
        must(not done or self._whole(), "same-bytes", "DONE only with all of one root")
        must(fetch.next_timeout() is None, "absorbing", "nothing is waited for")
        if not done and not self.cancelled:
            must(self.finish.reason is Reason.NO_SOURCE, "same-words", "why it fell back")
            must(self.lost >= set(fetch.sources), "to-the-last", "each source had its chance")


def _dialling(key: int, session: Session, script: Script) -> Iterator[Choice]:
    yield Choice("offers", key)
    for what in ("offers another root", "is busy", "ends", "unreachable", "transfer_failed"):
        yield Choice(what, key, fault=True)


def _open(key: int, session: Session, script: Script) -> Iterator[Choice]:
    if session.asked:
        yield Choice("delivers", key, min(session.asked))
        yield Choice("stalls", key, fault=True)
        yield Choice("digest_mismatch", key, fault=True)
    elif session.busy:
        yield Choice("completes", key)
    if more := ALL - session.has:
        yield Choice("has more", key, min(more))
    for what in ("connection_lost", "transfer_failed", "is busy", "ends"):
        yield Choice(what, key, fault=True)


def _stalled(key: int, session: Session, script: Script) -> Iterator[Choice]:
    yield Choice("transfer_stalled", key)


def _ending(key: int, session: Session, script: Script) -> Iterator[Choice]:
    yield Choice("ends", key)
    if session.asked:
        yield Choice("delivers", key, min(session.asked))
    if not session.late:
        for i in range(len(LATE)):
            yield Choice("says too late", key, i, fault=True)


LATE: Final[tuple[Callable[[int], FetchEvent], ...]] = (
    lambda key: Offered(key, OTHER, ALL),
    lambda key: Available(key, ALL),
    Completed,
    lambda key: Busy(key, RETRY_S),
    lambda key: SourceFailed(key, Reason.TRANSFER_FAILED, another_transport=True),
)
"""What a session may still report when it is over."""
CHOICES: Final[dict[str, Callable[[int, Session, Script], Iterator[Choice]]]] = {
    "dialling": _dialling,
    "open": _open,
    "stalled": _stalled,
    "ending": _ending,
}


def world(options: FetchOptions, *scripts: Script, late: int = 0) -> World:
    """A fetch that begins; the last `late` sources are found later."""
    made = World(Fetch(options, 0.0), scripts)
    known = len(scripts) - late
    made.late = frozenset(range(known, len(scripts)))
    made._tell(made.found(*range(known)))
    return made
