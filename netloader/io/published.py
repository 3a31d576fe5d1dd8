"""What one server publishes: weights, their digests, and places for clients.

What may happen to a published model, and what follows, is the table of `netloader.fsm.published`.
Here its events come in under one lock, and its effects are carried out without it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from netloader.fsm import published_events as ev
from netloader.fsm.events import Event, MoreAvailable, StopRequested
from netloader.fsm.manifest import Segment, segments_of
from netloader.fsm.published import ModelState, PublishedLife
from netloader.fsm.published_events import Renewal
from netloader.fsm.reasons import Reason
from netloader.fsm.terms import CatalogEntry
from netloader.io.background import BACKGROUND, in_background
from netloader.io.clock import monotonic
from netloader.io.comparing import (
    CHANGED,
    WithdrawnError,
    Work,
    carried_out,
    segment_digests,
    unknown,
)
from netloader.io.cores import cores
from netloader.io.failure import TransferError
from netloader.io.other_digests import OtherDigests
from netloader.io.referrals import Referrals
from netloader.io.snapshot import ModelSnapshot, OnSession, SessionRecord, Tally
from netloader.io.store.base import Store
from netloader.io.transports import Attachments
from netloader.io.usage import AlwaysInUse, Usage
from netloader.log import Logger


def withdraw_only(published: "PublishedModel", why: str) -> bool:
    """What follows a change when nobody prepares newer weights: nothing."""
    del published, why
    return False


OnChange: TypeAlias = Callable[["PublishedModel", str], bool]
Tell: TypeAlias = Callable[[Event], None]
"""Takes an event for a session, from any thread, without waiting."""


def _unheard(event: Event) -> None:
    """Ignore an event: the default of `admit`."""
    del event


class PublishedModel:
    """Weights on offer, shared by all sessions that want them. Safe to use from any thread.

    `usage` is asked before an offer and before the end of a transfer. When the weights are found to
    be others, the published model is lost and `on_change(published, why)` is called, once, on
    the thread that found it and without a lock. It returns True when newer weights will be on offer
    soon.
    """

    def __init__(
        self,
        weights: Store,
        entry: CatalogEntry,
        max_clients: int,
        usage: Usage | None = None,
        on_change: OnChange = withdraw_only,
        logger: Logger | None = None,
        on_session: OnSession | None = None,
    ) -> None:
        self._on_session, self._logger = on_session, logger
        self.usage: Usage = usage or AlwaysInUse()
        self._on_change = on_change
        self.weights = weights
        self.attachments = Attachments(weights)
        self.entry = entry
        self.segments: tuple[Segment, ...] = segments_of(entry.manifest, entry.segment_bytes)
        self.max_clients = max_clients
        self._life = PublishedLife(max_clients)
        self._sessions: list[Tell] = []
        """Those that have a place."""
        self._change = threading.Condition()
        self.tally = Tally()
        """Shared with what is published in its place."""
        self.referrals = Referrals()
        self.other_digests = OtherDigests(logger)

    def seal(self, known: tuple[str, ...] = ()) -> None:
        """Fix the digests: those `known` (just verified by a client), or computed on every core."""
        work = partial(self._work, workers=cores())
        self._tell(ev.DigestsKnown(known) if known else ev.DigestsAsked(), work)

    def seal_quietly(self) -> threading.Thread:
        """Compute the digests, if they are missing, on a thread of low priority, to be joined."""
        threads: list[threading.Thread] = []
        self._tell(ev.DigestsAsked(), lambda work: threads.append(self._begin(work)))
        return threads[0] if threads else in_background("netloader-seal", lambda: None)

    def audit(self) -> None:
        """Compare all weights with their digests, on this thread; changed ones are lost.

        Returns at once unless weights are on offer; else when a comparison that began after the
        call is over.
        """
        compared: list[Work] = []

        def now(work: Work) -> None:
            compared.append(work)
            self._work(work, workers=1)

        while not compared and self._comparable():
            self._tell(ev.AuditAsked(), now)

    def _comparable(self) -> bool:
        """Whether weights are on offer, once nothing else compares them."""
        compared = (ModelState.OFFERED, ModelState.AUDITING)
        with self._change:
            life = self._life
            self._change.wait_for(lambda: life.work is None or life.state not in compared)
            return life.state is ModelState.OFFERED

    def doubt(self) -> None:
        """Audit in the background because a client received other bytes; offers wait for it.

        A client may lie, so nothing happens while such an audit is under way, or soon after one.
        """
        self._tell(ev.Doubted())

    def digests(self, timeout_s: float) -> tuple[str, ...] | None:
        """The digest of every segment, or None when they are not ready within `timeout_s`.

        They are not while weights are compared with them because a client was in doubt. Empty when
        weights were withdrawn before.
        """
        with self._change:
            known = self._change.wait_for(lambda: not self._life.waiting, timeout_s)
            return self._life.digests if known else None

    def receive(self, digests: tuple[str, ...]) -> None:
        """Offer weights that are being received: the segments of `have`, and no others."""
        self._tell(ev.ReceivingBegan(digests))

    def have(self, segments: frozenset[int]) -> None:
        """These segments are verified and in their places; sessions are told."""
        self._tell(ev.SegmentsAvailable(tuple(segments)))

    def watch(self, usage: Usage | None, on_change: OnChange) -> None:
        """All is received and in use: watch it from now on."""
        self.usage, self._on_change = usage or AlwaysInUse(), on_change

    @property
    def available(self) -> frozenset[int] | None:
        """The segments that may be read; None: all."""
        with self._change:
            return self._life.available

    def changed(self, why: str) -> None:
        """The weights are not what was published: offer them no more, and ask for newer ones."""
        self._tell(ev.ChangeFound(why))

    def renewed(self, timeout_s: float) -> bool:
        """Whether it was found to be changed and newer weights will be on offer soon."""
        with self._change:
            self._change.wait_for(lambda: self._life.renewal is not Renewal.ASKED, timeout_s)
            return self._life.renewal is Renewal.PROMISED

    @property
    def renewable(self) -> bool:
        """Whether newer weights may take its place: a change was found, and nothing else since."""
        with self._change:
            return self._life.renewal in (Renewal.ASKED, Renewal.PROMISED)

    def still_used(self) -> bool:
        """Whether a quick look finds the weights to be what was published; if not, `changed`."""
        if why := self.usage.quick():
            self.changed(why)
        with self._change:
            return not why and self._life.renewal is Renewal.NONE

    def check(self) -> None:
        """Compare all that its owner uses with what was published; if it differs, `changed`."""
        if why := self.usage.quick() or self.usage.thorough():
            self.changed(why)

    def examine(self, unasked: Sequence[Segment]) -> str:
        """What is found to be changed when all is compared but what a client compares itself.

        `unasked` are segments that the client has from another source: nobody reads them now.
        """
        try:
            with self.reading():
                with self._change:
                    digests = self._life.digests
                if why := self.usage.thorough():
                    return why
                now = segment_digests(self.weights, unasked, self.entry.digest_algorithms[0], 1)
        except TransferError as error:
            return error.detail
        same = now == tuple(digests[segment.index] for segment in unasked)
        return "" if same else CHANGED

    @property
    def state(self) -> ModelState:
        """Where it is in its life."""
        return self._life.state

    @property
    def withdrawn(self) -> str:
        """Why nothing is offered; empty while something is, or soon will be."""
        with self._change:
            return self._life.refusal

    @property
    def reason(self) -> Reason:
        """The reason that clients are told with it."""
        with self._change:
            return self._life.reason

    def withdraw(self, why: str) -> None:
        """Offer nothing any more; clients are told `why`. Whoever reads already may go on."""
        self._tell(ev.Withdrawn(why))

    def evict(self, why: str, timeout_s: float) -> bool:
        """Withdraw, end every session with `why`, and wait until nothing reads the weights.

        True if that took `timeout_s` seconds at most: the memory may then be freed, or written.
        """
        self.withdraw(why)
        self._say(StopRequested(Reason.NOT_SERVING, why))
        return self.quiet(timeout_s)

    def fence(self, why: str) -> None:
        """The weights are going to change: end every session, and begin none until `unfence`.

        When it is `quiet`, they may be written. May be nested.
        """
        self._tell(ev.FenceRaised(why))

    def unfence(self) -> None:
        """A fence ended with the weights as before: after the last one, audit and offer them.

        Not if they were withdrawn meanwhile, or their digests were not known.
        """
        self._tell(ev.Resumed())

    @property
    def fences(self) -> int:
        """How many are open."""
        with self._change:
            data = self._life.data
            return data.depth if isinstance(data, ev.Fenced) else 0

    def retire(self, why: str, reason: Reason = Reason.NOT_SERVING) -> None:
        """End for good: sessions are told `why`; with the last one all memory is given up."""
        self._tell(ev.ModelGone(why, reason))

    def over(self, timeout_s: float) -> bool:
        """Wait until nothing is offered; False when that takes longer."""
        with self._change:
            return self._change.wait_for(lambda: bool(self._life.refusal), timeout_s)

    def unproven(self, error: Exception) -> None:
        """Offer nothing whose digests cannot be computed; clients are told why."""
        if not self.withdrawn:
            self.withdraw(unknown(error))

    def admit(self, tell: Tell = _unheard) -> bool:
        """Take a place for one client, if there is one; give it back with `leave`.

        `tell` takes what the session must hear: that it ends, or that there are more segments.
        """
        with self._change:
            admitted = isinstance(self._take(ev.ClientArrived())[0], ev.Admit)
            if admitted:
                self._sessions.append(tell)
                self.tally.add(sessions=1)
        return admitted

    def leave(self, tell: Tell = _unheard) -> None:
        """Give a place back.

        Raises:
            LocalProtocolError: more places are given back than were taken.
        """
        with self._change:
            effects = self._take(ev.ClientLeft())
            self._sessions.remove(tell)
        self._perform(effects, self._begin)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Where the weights are read, and nowhere else.

        Raises:
            WithdrawnError: nobody may begin to any more.
        """
        answer = self._tell(ev.ReaderArrived())[0]
        if isinstance(answer, ev.Deny):
            raise WithdrawnError(answer.why)
        try:
            yield
        finally:
            self._tell(ev.ReaderLeft())

    def quiet(self, timeout_s: float) -> bool:
        """Wait until no client has a place and nobody reads; False when that takes longer."""
        with self._change:
            quiet = self._change.wait_for(lambda: self._life.quiet, timeout_s)
        if quiet and self.withdrawn:  # then no session begins any more
            self.attachments.detach()
        return quiet

    def ended(self, record: SessionRecord) -> None:
        """Tell the owner of a session that is over, on a thread: its callback may take long."""
        if self._on_session is not None:
            told = partial(self._on_session, record)
            in_background("netloader-on-session", told, logger=self._logger)

    def snapshot(self) -> ModelSnapshot:
        """What it is in now, and what was done for its clients."""
        with self._change:
            state, clients, withdrawn = self._life.state, self._life.clients, self._life.refusal
        role, nbytes = self.entry.role, self.entry.manifest.nbytes
        return ModelSnapshot(role, state, nbytes, clients, *self.tally.read(), withdrawn)

    def _tell(
        self, event: ev.Event, work: Callable[[Work], object] | None = None
    ) -> tuple[ev.Effect, ...]:
        """Take one event and carry out the effects; `work` does what reads all weights."""
        effects = self._take(event)
        self._perform(effects, work or self._begin)
        return effects

    def _take(self, event: ev.Event) -> tuple[ev.Effect, ...]:
        with self._change:
            effects = self._life.step(event, monotonic())
            self._change.notify_all()
            return effects

    def _perform(self, effects: Sequence[ev.Effect], work: Callable[[Work], object]) -> None:
        for effect in effects:
            match effect:
                case ev.ComputeDigests() | ev.Audit():
                    work(effect)
                case ev.EvictSessions(why, reason):
                    self._say(StopRequested(reason, why))
                case ev.TellOfMore(segments):
                    self._say(MoreAvailable(segments))
                case ev.AskOwner(why):
                    self._ask_owner(why)
                case ev.Release():
                    self.attachments.detach()
                case ev.Admit() | ev.Deny():
                    pass  # for who asked

    def _say(self, event: Event) -> None:
        with self._change:
            sessions = tuple(self._sessions)
        for tell in sessions:
            tell(event)

    def _ask_owner(self, why: str) -> None:
        promised = False
        try:
            promised = self._on_change(self, why)
        finally:
            self._tell(ev.RenewalPromised() if promised else ev.RenewalRefused())

    def _begin(self, work: Work) -> threading.Thread:
        """Work in the background, without slowing anybody."""
        name = "netloader-audit" if isinstance(work, ev.Audit) else "netloader-seal"
        could_not: list[Exception] = []
        thread = in_background(name, partial(self._work, work, 1), could_not.append, self._logger)
        if thread.ident is None:
            audit = isinstance(work, ev.Audit)
            self._tell(ev.WorkStopped() if audit else ev.WorkFailed(unknown(could_not[0])))
        return thread

    def _work(self, work: Work, workers: int) -> None:
        """Read all weights, and report what was found."""
        try:
            ended = self._worked(work, workers)
        except Exception as error:
            self._tell(ev.WorkFailed(unknown(error)))
            raise
        self._tell(ended)

    def _worked(self, work: Work, workers: int) -> ev.Event:
        algorithm = self.entry.digest_algorithms[0]
        return carried_out(work, self.weights, self.segments, algorithm, workers, self._wanted)

    def _wanted(self) -> None:
        if (why := self.withdrawn) or BACKGROUND.ending.is_set():
            raise WithdrawnError(why or "the process ends")
