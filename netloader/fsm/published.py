"""The life of a published model: what is offered, and when its memory may be freed.

A model is offered while the digests of its segments are known and no change of it is known. A
change that is announced is a fence: sessions are evicted, and when the last reader has left, the
memory may be written to. A change that is found leaves the model lost. Changed weights are
published as another model, with a life of its own: they may be other tensors.

A relay is received and offered at once: each segment from the moment when it is verified.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, TypeAlias

from netloader.errors import LocalProtocolError
from netloader.fsm import published_events as ev
from netloader.fsm.published_events import Effect, ModelState, Renewal, Work
from netloader.fsm.published_life import Action, PublishedLife, known_in
from netloader.fsm.table import Alphabet, Program, Table, build, check, every, row

__all__ = ["ALPHABET", "MACHINE", "TABLE", "ModelState", "PublishedLife"]

PAUSE_S = 60.0
"""The least time from the end of an audit that a client's doubt began to the next such audit."""
SHARE = 20
"""The pause is at least this many times what the audit took: 5% of one core at the most."""
UNKNOWN: Final = "the weights were taken away before their digests were known"
UNCHECKED: Final = "the weights could not be compared with what was published"

# -- guards --------------------------------------------------------------------------------------


def _room(life: PublishedLife, _: ev.ClientArrived) -> bool:
    return life.clients < life.places


def _idle(life: PublishedLife, _: object) -> bool:
    return life.work is None


def _rested(life: PublishedLife, _: ev.Doubted) -> bool:
    return life.now >= life.rest_until


def _all_there(life: PublishedLife, event: ev.SegmentsAvailable) -> bool:
    data = known_in(life, ev.Receiving)
    return len(data.available.union(event.segments)) == len(data.digests)


def _differs(_: PublishedLife, event: ev.AuditEnded) -> bool:
    return bool(event.why)


def _differs_after_fence(life: PublishedLife, event: ev.AuditEnded) -> bool:
    return bool(event.why) and known_in(life, ev.Auditing).cause is ev.Cause.RESUME


def _for_resume(life: PublishedLife, _: ev.WorkStopped) -> bool:
    return known_in(life, ev.Auditing).cause is ev.Cause.RESUME


def _stale(life: PublishedLife, _: ev.AuditEnded | ev.WorkStopped) -> bool:
    return known_in(life, ev.Auditing).again


def _open_still(life: PublishedLife, _: ev.Quiet) -> bool:
    return known_in(life, ev.Fenced).depth > 0


def _known(life: PublishedLife, _: ev.Quiet) -> bool:
    data = known_in(life, ev.Fenced)
    return bool(data.digests) and not data.lost


def _asked(life: PublishedLife, _: ev.RenewalPromised) -> bool:
    return life.renewal is Renewal.ASKED


def _unreleased(life: PublishedLife, _: ev.Quiet) -> bool:
    return not known_in(life, ev.Retired).released


# -- actions -------------------------------------------------------------------------------------


def _nothing(_life: PublishedLife, _event: object) -> Iterable[Effect]:
    return ()


def _compute(life: PublishedLife, _: object) -> Iterable[Effect]:
    life.work, life.data = Work.DIGESTS, ev.Preparing()
    yield ev.ComputeDigests()


def _work_ended(life: PublishedLife, event: object) -> Iterable[Effect]:
    if life.work is None:
        raise LocalProtocolError(f"{type(event).__name__} of work that was not begun")
    life.work = None
    return ()


def _offer(life: PublishedLife, event: ev.DigestsKnown | ev.DigestsReady) -> Iterable[Effect]:
    if isinstance(event, ev.DigestsReady):
        _work_ended(life, event)
    life.data = ev.Offered(event.digests)
    return ()


def _receive(life: PublishedLife, event: ev.ReceivingBegan) -> Iterable[Effect]:
    if life.work is not None:
        raise LocalProtocolError("a relay takes the digests from its source; they are computed now")
    life.data = ev.Receiving(event.digests)
    return ()


def _add(life: PublishedLife, event: ev.SegmentsAvailable) -> Iterable[Effect]:
    data = known_in(life, ev.Receiving)
    more = frozenset(event.segments) - data.available
    life.data = replace(data, available=data.available | more)
    if more:
        yield ev.TellOfMore(more)


def _have_all(life: PublishedLife, event: ev.SegmentsAvailable) -> Iterable[Effect]:
    data = known_in(life, ev.Receiving)
    life.data = ev.Offered(data.digests)
    yield ev.TellOfMore(frozenset(event.segments) - data.available)


def _admit_client(life: PublishedLife, _: ev.ClientArrived) -> Iterable[Effect]:
    life.clients += 1
    yield ev.Admit()


def _admit_reader(life: PublishedLife, _: ev.ReaderArrived) -> Iterable[Effect]:
    life.readers += 1
    yield ev.Admit()


def _deny(life: PublishedLife, _: object) -> Iterable[Effect]:
    yield ev.Deny(life.refusal)


def _client_left(life: PublishedLife, _: ev.ClientLeft) -> Iterable[Effect]:
    if not life.clients:
        raise LocalProtocolError("more places were given back than were taken")
    life.clients -= 1
    return ()


def _reader_left(life: PublishedLife, _: ev.ReaderLeft) -> Iterable[Effect]:
    if not life.readers:
        raise LocalProtocolError("more readers left than came")
    life.readers -= 1
    return ()


def _fence(life: PublishedLife, event: ev.FenceRaised) -> Iterable[Effect]:
    lost = life.data.why if isinstance(life.data, ev.Lost) else ""
    digests = () if isinstance(life.data, ev.Receiving) else life.digests
    _end_of_doubt(life)
    life.data = ev.Fenced(event.why, 1, digests, lost)
    yield ev.EvictSessions(event.why)


def _deepen(life: PublishedLife, event: ev.FenceRaised) -> Iterable[Effect]:
    data = known_in(life, ev.Fenced)
    life.data = replace(data, why=event.why, depth=data.depth + 1)
    yield ev.EvictSessions(event.why)


def _note_digests(life: PublishedLife, event: ev.DigestsReady) -> Iterable[Effect]:
    """Digests of what was there before the change: nobody writes while they are computed."""
    _work_ended(life, event)
    life.data = replace(known_in(life, ev.Fenced), digests=event.digests)
    return ()


def _note_loss(life: PublishedLife, event: Any) -> Iterable[Effect]:
    data = known_in(life, ev.Fenced)
    life.data = replace(data, lost=event.why or data.lost)
    return ()


def _note_result(life: PublishedLife, event: ev.AuditEnded | ev.WorkFailed) -> Iterable[Effect]:
    _work_ended(life, event)
    return _note_loss(life, event)


def _resume(life: PublishedLife, _: ev.Resumed) -> Iterable[Effect]:
    data = known_in(life, ev.Fenced)
    if not data.depth:
        raise LocalProtocolError("more fences ended than were raised")
    life.data = replace(data, depth=data.depth - 1)
    return ()


def _compare(life: PublishedLife, _: ev.Quiet) -> Iterable[Effect]:
    digests = known_in(life, ev.Fenced).digests
    life.work, life.data = Work.AUDIT, ev.Auditing(digests, ev.Cause.RESUME, life.now)
    yield ev.Audit(digests)


def _give_up(life: PublishedLife, _: ev.Quiet) -> Iterable[Effect]:
    data = known_in(life, ev.Fenced)
    life.data = ev.Lost(data.lost or UNKNOWN, data.digests)
    return ()


def _audit(life: PublishedLife, _: ev.AuditAsked) -> Iterable[Effect]:
    life.work = Work.AUDIT
    yield ev.Audit(life.digests)


def _doubt(life: PublishedLife, _: ev.Doubted) -> Iterable[Effect]:
    life.data = ev.Auditing(life.digests, ev.Cause.DOUBT, life.now, again=life.work is not None)
    if life.work is None:
        life.work = Work.AUDIT
        yield ev.Audit(life.digests)


def _audit_again(life: PublishedLife, event: object) -> Iterable[Effect]:
    _work_ended(life, event)
    data = known_in(life, ev.Auditing)
    life.work, life.data = Work.AUDIT, replace(data, again=False)
    yield ev.Audit(data.digests)


def _offer_again(life: PublishedLife, event: object) -> Iterable[Effect]:
    _work_ended(life, event)
    _end_of_doubt(life)
    life.data = ev.Offered(life.digests)
    return ()


def _end_of_doubt(life: PublishedLife) -> None:
    """The next doubt waits: a client that lies must not keep a core busy."""
    if isinstance(life.data, ev.Auditing) and life.data.cause is ev.Cause.DOUBT:
        took = life.now - life.data.begun
        life.rest_until = life.now + max(PAUSE_S, SHARE * took)


def _changed(life: PublishedLife, event: Any) -> Iterable[Effect]:
    _end_of_doubt(life)
    life.data = ev.Lost(event.why, life.digests, Renewal.ASKED)
    yield ev.AskOwner(event.why)


def _found_changed(life: PublishedLife, event: ev.AuditEnded) -> Iterable[Effect]:
    _work_ended(life, event)
    return _changed(life, event)


def _lose(life: PublishedLife, event: Any) -> Iterable[Effect]:
    _end_of_doubt(life)
    life.data = ev.Lost(event.why, life.digests, life.renewal)
    return ()


def _withdraw(life: PublishedLife, event: ev.Withdrawn) -> Iterable[Effect]:
    """Newer weights that the owner was asked for are not to be offered any more."""
    asked = life.renewal is not Renewal.NONE
    life.data = ev.Lost(event.why, life.digests, Renewal.REFUSED if asked else Renewal.NONE)
    return ()


def _fail(life: PublishedLife, event: ev.AuditEnded | ev.WorkFailed) -> Iterable[Effect]:
    _work_ended(life, event)
    return _lose(life, event)


def _stay_unchecked(life: PublishedLife, event: ev.WorkStopped) -> Iterable[Effect]:
    _work_ended(life, event)
    life.data = ev.Lost(UNCHECKED, life.digests)
    return ()


def _promise(life: PublishedLife, _: ev.RenewalPromised) -> Iterable[Effect]:
    life.data = replace(known_in(life, ev.Lost), renewal=Renewal.PROMISED)
    return ()


def _refuse(life: PublishedLife, _: ev.RenewalRefused) -> Iterable[Effect]:
    life.data = replace(known_in(life, ev.Lost), renewal=Renewal.REFUSED)
    return ()


def _retire(life: PublishedLife, event: ev.ModelGone) -> Iterable[Effect]:
    life.data = ev.Retired(event.why, event.reason)
    yield ev.EvictSessions(event.why, event.reason)


def _release(life: PublishedLife, _: ev.Quiet) -> Iterable[Effect]:
    life.data = replace(known_in(life, ev.Retired), released=True)
    yield ev.Release()


# -- the table -----------------------------------------------------------------------------------

P, I, O, F, A, L, R = ModelState  # noqa: E741
SERVED: Final = (P, I, O, A)
"""States in which sessions may have places and read."""
Rows: TypeAlias = Table[PublishedLife]


def same(states: tuple[ModelState, ...], on: type[ev.Event], act: Action) -> Rows:
    """A row in several states, none of which is left."""
    return tuple(row(state, on, state, act) for state in states)


def unmoved(on: type[ev.Event], *states: ModelState) -> Rows:
    """Nothing happens in some states."""
    return same(states, on, _nothing)


TABLE: Rows = (
    #   in  on                      to  do                  when
    row(P, ev.DigestsAsked,         P, _compute,          when=_idle),
    *unmoved(ev.DigestsAsked,       *ModelState),
    row(P, ev.DigestsKnown,         O, _offer),
    *unmoved(ev.DigestsKnown,       I, O, F, A, L, R),
    row(P, ev.DigestsReady,         O, _offer),
    row(F, ev.DigestsReady,         F, _note_digests),
    row(A, ev.DigestsReady,         A, _audit_again),
    *same((O, L, R), ev.DigestsReady,  _work_ended),

    row(P, ev.ReceivingBegan,       I, _receive),
    row(I, ev.SegmentsAvailable,    O, _have_all,         when=_all_there),
    row(I, ev.SegmentsAvailable,    I, _add),
    *unmoved(ev.SegmentsAvailable,  O, F, A, L, R),

    *(row(s, ev.ClientArrived,      s, _admit_client,     when=_room) for s in SERVED),
    *same(tuple(ModelState), ev.ClientArrived, _deny),
    *same(tuple(ModelState), ev.ClientLeft, _client_left),
    *same(SERVED, ev.ReaderArrived, _admit_reader),
    *same((F, L, R), ev.ReaderArrived, _deny),
    *same(tuple(ModelState), ev.ReaderLeft, _reader_left),

    row(O, ev.AuditAsked,           O, _audit,            when=_idle),
    *unmoved(ev.AuditAsked,         *ModelState),
    row(O, ev.Doubted,              A, _doubt,            when=_rested),
    *unmoved(ev.Doubted,            *ModelState),
    row(O, ev.AuditEnded,           L, _found_changed,    when=_differs),
    row(O, ev.AuditEnded,           O, _work_ended),
    row(A, ev.AuditEnded,           L, _fail,             when=_differs_after_fence),
    row(A, ev.AuditEnded,           L, _found_changed,    when=_differs),
    row(A, ev.AuditEnded,           A, _audit_again,      when=_stale),
    row(A, ev.AuditEnded,           O, _offer_again),
    row(F, ev.AuditEnded,           F, _note_result),
    *same((L, R), ev.AuditEnded,       _work_ended),
    *every((P, O, A), ev.WorkFailed, L, _fail),
    row(F, ev.WorkFailed,           F, _note_result),
    *same((L, R), ev.WorkFailed,       _work_ended),
    row(A, ev.WorkStopped,          L, _stay_unchecked,   when=_for_resume),
    row(A, ev.WorkStopped,          A, _audit_again,      when=_stale),
    row(A, ev.WorkStopped,          O, _offer_again),
    *same((P, O, F, L, R), ev.WorkStopped, _work_ended),

    *every(SERVED, ev.ChangeFound,  L, _changed),
    row(F, ev.ChangeFound,          F, _note_loss),
    *unmoved(ev.ChangeFound,        L, R),
    row(L, ev.RenewalPromised,      L, _promise,          when=_asked),
    row(L, ev.RenewalPromised,      L, _nothing),
    row(L, ev.RenewalRefused,       L, _refuse),
    *unmoved(ev.RenewalPromised,    F, R),
    *unmoved(ev.RenewalRefused,     F, R),

    *every((*SERVED, L), ev.FenceRaised, F, _fence),
    row(F, ev.FenceRaised,          F, _deepen),
    row(F, ev.Resumed,              F, _resume),
    *(r for on in (ev.FenceRaised, ev.Resumed) for r in unmoved(on, R)),
    row(F, ev.Quiet,                F, _nothing,          when=_open_still),
    row(F, ev.Quiet,                A, _compare,          when=_known),
    row(F, ev.Quiet,                L, _give_up),
    *unmoved(ev.Quiet,              P, I, O, L),

    *every(SERVED, ev.Withdrawn,    L, _lose),
    row(L, ev.Withdrawn,            L, _withdraw),
    row(F, ev.Withdrawn,            F, _note_loss),
    *every((*SERVED, F, L), ev.ModelGone, R, _retire),
    row(R, ev.Quiet,                R, _release,          when=_unreleased),
    *(r for on in (ev.Withdrawn, ev.ModelGone, ev.Quiet) for r in unmoved(on, R)),
)  # fmt: skip

ALPHABET = Alphabet(ModelState, P, ev.EVENTS, ev.ANY_TIME)

check(TABLE, {}, ALPHABET)
MACHINE: Program = build(TABLE, ALPHABET)
PublishedLife.machine = MACHINE
