"""Every order of changes, sessions, digests, audits and retirement in a published model's life.

The world knows what the machine cannot: which version of the weights is in memory, who really reads
it, and whether somebody wrote it without a word.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Final, TypeAlias

from netloader.fsm import published_events as ev
from netloader.fsm.published import PAUSE_S, ModelState, PublishedLife
from netloader.testing.laws import must
from tests.property.search import Found

ENDING: Final = (ev.FenceRaised, ev.ModelGone)
"""What ends the sessions."""
CLOSED: Final = (ModelState.FENCED, ModelState.LOST, ModelState.RETIRED)
"""Where nobody may begin anything."""
SEGMENTS: Final = 2
Choice: TypeAlias = tuple[str, Callable[["World"], object]]


def digests_of(version: int) -> tuple[str, ...]:
    return (str(version),) * SEGMENTS


@dataclass(frozen=True)
class Working:
    """Digests or an audit under way; `seen` are the versions of memory it may have read."""

    effect: ev.ComputeDigests | ev.Audit
    seen: frozenset[int]
    after_all: bool = True
    """Whether it began after every unannounced write."""
    after_doubt: bool = True
    """Whether it began after the doubt that offers wait for."""


@dataclass
class World:
    """A published model, its owner, its sessions, and the truth."""

    life: PublishedLife
    left: Mapping[str, int]
    """How often each thing may still happen."""
    memory: int = 0
    written: int = 0
    """The newest version there was."""
    tainted: bool = False
    """Whether somebody wrote without a word, and nothing has looked at all of memory since."""
    fences: int = 0
    answered: bool = False
    """Whether the owner has seen that nobody reads, and may write."""
    lost: bool = False
    """Whether it was lost: then it is never offered again."""
    clients: int = 0
    readers: int = 0
    working: Working | None = None
    relayed: bool = False
    arrived: frozenset[int] = frozenset()
    """Segments of a relay that are verified."""
    told: frozenset[int] = frozenset()
    """Segments that sessions were told of."""
    doubted: bool = False
    """Whether a doubt was taken up, and nothing that began after it has ended."""
    asked: int = 0
    released: int = 0
    now: float = 0.0
    path: tuple[str, ...] = field(default=(), compare=False)

    @property
    def key(self) -> tuple[object, ...]:
        """Two worlds with one key have one future."""
        life, data = self.life, self.life.data
        if isinstance(data, ev.Auditing):
            data = replace(data, begun=0.0)
        known = (life.state, data, life.clients, life.readers, life.work)
        truth = (self.written, self.tainted, self.fences, self.answered, self.lost, self.clients)
        doing = (self.readers, self.working, self.asked, self.released, self.doubted)
        relay = (self.relayed, self.arrived, self.told)
        rested = self.now < life.rest_until
        return (known, truth, doing, relay, rested, self.memory, tuple(sorted(self.left.items())))

    def fork(self) -> "World":
        """A copy that may go another way."""
        twin = copy.copy(self)
        twin.life = copy.copy(self.life)
        return twin

    @property
    def whole(self) -> bool:
        """Whether every segment of a relay is verified."""
        return len(self.arrived) == SEGMENTS

    # -- what happens, and what must hold then -------------------------------------------------

    def tell(self, event: ev.Event) -> tuple[ev.Effect, ...]:
        """Tell the machine, and perform what it wants."""
        before = self.life.state
        effects = self.life.step(event, self.now)
        self.relayed |= isinstance(event, ev.ReceivingBegan)
        if isinstance(event, ev.SegmentsAvailable):
            self.arrived |= {*event.segments}
        for effect in effects:
            self._perform(effect, event, before)
        if isinstance(event, ENDING) and before is not ModelState.RETIRED:
            evicted = any(isinstance(effect, ev.EvictSessions) for effect in effects)
            must(evicted, "evict", "a fence ends the sessions, and so does the end of the model")
        data = self.life.data
        self.lost |= isinstance(data, ev.Lost)
        self.lost |= isinstance(event, ev.ChangeFound) and isinstance(data, ev.Fenced)
        if isinstance(event, ev.Doubted) and self.life.state is not before:
            self._take_up(effects)
        self._holds()
        return effects

    def _take_up(self, effects: tuple[ev.Effect, ...]) -> None:
        """A doubt was taken up: what reads the weights already may have passed the place."""
        self.doubted = True
        if self.working is not None and not effects:
            self.working = replace(self.working, after_doubt=False)

    def _perform(self, effect: ev.Effect, event: ev.Event, before: ModelState) -> None:
        match effect:
            case ev.Admit():
                must(before not in CLOSED, "closed", f"{event} is admitted in {before.name}")
                self.clients += isinstance(event, ev.ClientArrived)
                self.readers += isinstance(event, ev.ReaderArrived)
            case ev.Deny():
                must(bool(effect.why) == (before in CLOSED), "closed", f"{event} is told why")
            case ev.ComputeDigests() | ev.Audit():
                must(self.working is None, "one-work", "at most one reads everything")
                self.working = Working(effect, frozenset({self.memory}))
            case ev.AskOwner():
                self.asked += 1
            case ev.Release():
                self.released += 1
            case ev.EvictSessions():
                must(isinstance(event, ENDING), "evict", "for nothing else")
            case ev.TellOfMore():
                news = not effect.segments & self.told
                must(news and bool(effect.segments), "told-once", "of each segment")
                self.told |= effect.segments

    def _holds(self) -> None:
        """What is true at any moment."""
        life = self.life
        state = life.state
        named = type(life.data).__name__.upper()
        must(named == state.name, "data-in-its-state", f"{named} in {state.name}")
        counted = (life.clients, life.readers, life.work is not None)
        really = (self.clients, self.readers, self.working is not None)
        must(counted == really, "counted", f"{counted} for {really}")
        idle = really == (0, 0, False)
        must(life.quiet == idle, "quiet", "quiet is when nobody has a place or reads")
        if self.fences and state is not ModelState.RETIRED:
            must(state is ModelState.FENCED, "fenced", f"{state.name} behind a fence")
        if self.fences and self.answered:
            must(idle, "quiet", "behind an answered fence nobody reads")
        if state is ModelState.OFFERED:
            must(not self.lost, "lost-for-ever", "offered after it was lost")
            must(not self.relayed or self.whole, "offered-when-whole", "a relay lacks segments")
            must(not self.doubted, "doubts-are-audited", "offered before the audit it began")
            true = isinstance(life.data, ev.Offered) and life.data.digests == digests_of(
                self.memory
            )
            must(true or self.tainted, "offers-what-is-there", f"{life.data} for {self.memory}")
        gone = state is ModelState.RETIRED
        must(
            self.released == int(gone and idle) or (gone and self.released == 1), "release", "once"
        )
        must(not self.released or idle, "release", "nobody reads what was released")

    # -- what may happen next ------------------------------------------------------------------

    def choices(self) -> Iterator[Choice]:
        """Everything that may happen now."""
        yield from self.ends()
        yield from self._sessions()
        yield from self._owner()
        if self.asked:
            yield "promise", lambda w: w.answer(ev.RenewalPromised())
            yield "refuse", lambda w: w.answer(ev.RenewalRefused())

    def ends(self) -> Iterator[Choice]:
        """What is under way ends, and nothing new begins."""
        if self.readers:
            yield "reader leaves", World.reader_left
        if self.clients > self.readers:
            yield "client leaves", World.client_left
        if self.working is not None:
            for version in self.working.seen:
                yield f"work ends at {version}", partial(World.work_ends, version=version)
            if self.left["fail"]:
                yield "work fails", lambda w: w.once("fail").work_over(ev.WorkFailed("no memory"))
            yield "work stops", lambda w: w.work_over(ev.WorkStopped())

    def _sessions(self) -> Iterator[Choice]:
        if self.left["client"]:
            yield "client", lambda w: w.once("client").tell(ev.ClientArrived())
        if self.clients > self.readers and self.left["reader"]:
            yield "reader", lambda w: w.once("reader").tell(ev.ReaderArrived())
        if self.left["doubt"]:
            yield "doubt", lambda w: w.once("doubt").tell(ev.Doubted())
            yield "late doubt", lambda w: w.once("doubt").later().tell(ev.Doubted())
        if self.left["alarm"]:
            yield "alarm", lambda w: w.once("alarm").tell(ev.ChangeFound("not in any segment"))
        if self.tainted:
            yield "found", lambda w: w.tell(ev.ChangeFound("found"))

    def _owner(self) -> Iterator[Choice]:
        """What the owner may do now."""
        yield from self._fences()
        if self.left["secret"]:
            yield "secret write", World.secret_write
        for what, event in self._wishes():
            if self.left[what]:
                yield repr(event), partial(World.wish, what=what, event=event)

    def _wishes(self) -> Iterator[tuple[str, ev.Event]]:
        """What the owner may say now, as often as the bound of its name allows."""
        state = self.life.state
        yield "ask", ev.DigestsAsked()
        yield "ask", ev.AuditAsked()
        yield "withdraw", ev.Withdrawn("withdrawn")
        yield "gone", ev.ModelGone("gone")
        if not self.written:
            yield "known", ev.DigestsKnown(digests_of(0))
        if state is ModelState.PREPARING and not self.life.work:
            yield "relay", ev.ReceivingBegan(digests_of(self.memory))
        if self.relayed:
            for segment in range(SEGMENTS):  # also one that was there before
                yield "segment", ev.SegmentsAvailable((segment,))

    def _fences(self) -> Iterator[Choice]:
        if self.left["fence"]:
            yield "fence", World.fence
        if self.fences and self.life.quiet and not self.answered:
            yield "answered", World.hear_answer
        if self.fences and self.answered and self.left["write"]:
            yield "write", World.write
        if self.fences:
            yield "resume", lambda w: w.unfence(ev.Resumed())

    # -- steps -----------------------------------------------------------------------------------

    def once(self, what: str) -> "World":
        self.left = {**self.left, what: self.left[what] - 1}
        return self

    def later(self) -> "World":
        self.now += 2 * PAUSE_S
        return self

    def wish(self, what: str, event: ev.Event) -> None:
        self.once(what).tell(event)

    def reader_left(self) -> None:
        self.readers -= 1
        self.tell(ev.ReaderLeft())

    def client_left(self) -> None:
        self.clients -= 1
        self.tell(ev.ClientLeft())

    def work_ends(self, version: int) -> None:
        """It has found what memory was at one moment."""
        working = self.working
        assert working is not None
        self.tainted &= not working.after_all
        if isinstance(working.effect, ev.ComputeDigests):
            self.work_over(ev.DigestsReady(digests_of(version)))
        else:
            same = working.effect.digests == digests_of(version)
            self.work_over(ev.AuditEnded("" if same else "other bytes"))

    def work_over(self, event: ev.Event) -> None:
        self.doubted &= self.working is not None and not self.working.after_doubt
        self.working = None
        self.tell(event)

    def answer(self, event: ev.Event) -> None:
        self.asked -= 1
        self.tell(event)

    def fence(self) -> None:
        self.once("fence")
        self.fences += self.life.state is not ModelState.RETIRED
        self.answered &= self.fences > 1
        self.tell(ev.FenceRaised("fenced"))

    def hear_answer(self) -> None:
        self.answered = True
        self._holds()

    def write(self) -> None:
        self.once("write")
        self._written()

    def unfence(self, event: ev.Event) -> None:
        self.fences -= 1
        self.answered &= self.fences > 0
        self.tell(event)

    def secret_write(self) -> None:
        self.once("secret")
        self.tainted = True
        self._written()
        if self.working is not None:
            seen = self.working.seen | {self.memory}
            self.working = replace(self.working, seen=seen, after_all=False)

    def _written(self) -> None:
        self.written += 1
        self.memory = self.written


def search_life(left: Mapping[str, int], places: int) -> Found:
    """Everything that can become of a published model; raises AssertionError with the path."""
    found, begun = Found(), perf_counter()
    start = World(PublishedLife(places), left)
    seen, edge = {start.key}, deque([start])
    while edge:
        at = edge.popleft()
        found.nodes += 1
        reached = at
        try:
            ends_well(at.fork())
            for name, act in at.choices():
                found.edges += 1
                reached = at.fork()
                reached.path = (*at.path, name)
                act(reached)
                found.rows |= {id(row) for row in reached.life.fired}
                if reached.key not in seen:
                    seen.add(reached.key)
                    edge.append(reached)
        except Exception as error:
            error.add_note(" > ".join(reached.path))
            raise
    found.seconds = perf_counter() - begun
    return found


def ends_well(world: World) -> None:
    """When what is under way ends, a fence is answered; when fences end, it is not fenced."""
    fences = world.fences
    world.left = {**world.left, "fail": 0}
    _run_out(world)
    must(world.life.quiet or not fences, "every-fence-is-answered", "the last reader lets it go on")
    while world.fences:
        world.unfence(ev.Resumed())
    _run_out(world)
    must(world.life.state is not ModelState.FENCED, "every-fence-ends", "with its last owner")
    must(world.life.state is not ModelState.AUDITING, "every-audit-ends", "with its work")


def _run_out(world: World) -> None:
    while ends := list(world.ends()):
        ends[0][1](world)
