"""Exhaustive search of a fetch: whatever few sources do, it ends, and with bytes of one root."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Final, NamedTuple

import pytest

from netloader.fsm.fetch import Fetch, FetchOptions
from netloader.fsm.fetch_events import (
    Assigned,
    Busy,
    Chosen,
    Completed,
    Conclude,
    Dial,
    Dismissed,
    Due,
    FetchEffect,
    FetchEvent,
    Finish,
    Offered,
    Recalled,
    Request,
    SegmentVerified,
    SourceEnded,
    SourceFailed,
    SourcesFound,
    Stage,
    Wait,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.source import TABLE
from netloader.fsm.states import State
from netloader.fsm.table import absorb
from tests.property.fetch_search import Found, search
from tests.property.fetch_world import ALL, LATE, OTHER, OURS, PATIENT, Script, world

FIRST: Final = Script(has=frozenset({0}))
REST: Final = Script(has=ALL - {0})


class Case(NamedTuple):
    """A fetch and its sources; the last `late` of them are found later."""

    parallel: int
    faults: int
    scripts: tuple[Script, ...]
    late: int = 0
    queue_s: float = PATIENT.queue_s

    def search(self, faults: int) -> Found:
        options = replace(PATIENT, parallel=self.parallel, queue_s=self.queue_s)
        return search(world(options, *self.scripts, late=self.late), faults)


CASES: Final[Mapping[str, Case]] = {
    "one source": Case(1, 3, (Script(),)),
    "one that has not all yet": Case(1, 2, (FIRST,)),
    "one that has not all yet, without patience": Case(1, 1, (FIRST,), queue_s=0.0),
    "three, one at a time": Case(1, 2, (Script(),) * 3),
    "two, without patience": Case(1, 2, (Script(),) * 2, queue_s=0.0),
    "two at once, one found late": Case(2, 1, (Script(),) * 2, late=1),
    "two roots at once": Case(2, 1, (Script(), Script(OTHER))),
    "two at once that have not all yet": Case(2, 1, (FIRST, REST)),
    "two at once, one request a session": Case(
        2, 1, (Script(repeatable=False), Script(repeatable=False))
    ),
    "three, two at once": Case(2, 1, (Script(),) * 3),
    "two at once": Case(2, 2, (Script(),) * 2),
    "a folder and a peer": Case(1, 2, (Script(own=True), Script())),
    "a folder and two peers": Case(1, 1, (Script(own=True), Script(), Script())),
    "a folder with another root": Case(1, 1, (Script(OTHER, own=True), Script())),
}


@cache
def searched(name: str) -> Found:
    """What the search of a case finds with all its faults."""
    return CASES[name].search(CASES[name].faults)


@pytest.mark.parametrize("name", CASES)
def test_without_a_fault_every_order_of_events_fills_the_store(name: str) -> None:
    assert CASES[name].search(0).ends == {"DONE"}


@pytest.mark.parametrize("name", CASES)
def test_no_few_faults_bring_a_fetch_to_a_wrong_end_or_to_none(
    name: str, figures: list[str]
) -> None:
    found = searched(name)

    figures.append(
        f"fetch from {name}, up to {CASES[name].faults} faults: {found.nodes} nodes, "
        f"{found.edges} edges, {found.seconds:.2f} s; {len(found.rows)} rows fired"
    )
    assert found.ends == {"DONE", "FALLBACK"}


def test_every_row_that_a_person_wrote_fires(figures: list[str]) -> None:
    fired = set().union(*(searched(name).rows for name in CASES))
    rows = [r for r in TABLE if r.do is not absorb]
    silent = [f"{r.source.name} {r.on.__name__} {r.guard} {r.action}" for r in rows]
    silent = [text for text, r in zip(silent, rows, strict=True) if id(r) not in fired]

    figures.append(f"one source of a fetch: {len(rows) - len(silent)} of {len(rows)} rows fired")
    assert silent == []


def test_a_source_that_is_gone_absorbs_all() -> None:
    fetch = Fetch(FetchOptions(), 0.0)
    fetch.step(SourcesFound((0,)), 0.0)
    fetch.step(SourceEnded(0), 0.0)
    (source,) = fetch.sources.values()
    reports = [late(0) for late in LATE] + [SegmentVerified(0, 1), SourceEnded(0)]

    assert source.state is Stage.GONE
    assert all(fetch.step(report, 0.0) == () for report in reports)
    for decided in (Chosen(), Assigned((1,)), Dismissed(), Recalled(), Due()):
        assert source.step(decided)[1] == ()
    assert source.state is Stage.GONE
    assert fetch.next_timeout() is None


# -- with one source at a time, all is as it was in the loop that this machine replaced ------------

RETRY_S: Final = 1.0
QUEUE_S: Final = 2.5
ANSWERS: Final = ("done", "fails", "is busy", "cannot begin", "breaks off")
Trace = list[tuple[object, ...]]


def as_before(scripts: list[list[str]]) -> Trace:
    """What the loop did: rounds over all sources, then over those that were busy, and so on."""
    trace: Trace = []
    over_tcp: set[int] = set()
    now, round_ = 0.0, list(range(len(scripts)))
    while round_:
        again = []
        for key in round_:
            answer = "cannot begin"
            while answer == "cannot begin":
                trace.append(("dial", key, key in over_tcp))
                answer = scripts[key].pop(0) if scripts[key] else "fails"
                if key in over_tcp:
                    break
                over_tcp |= {key} if answer == "cannot begin" else set()
            if answer == "done":
                return [*trace, ("end", State.DONE, Reason.VERIFIED)]
            again += [key] if answer == "is busy" else []
        left = QUEUE_S - now
        if not again or left <= 0:
            break
        round_ = again
        pause = min(RETRY_S, left)
        trace.append(("wait", tuple(again), now + pause))
        now += pause
    return [*trace, ("end", State.FALLBACK, Reason.NO_SOURCE)]


def answered(fetch: Fetch, dial: Dial, answer: str, now: float) -> list[FetchEffect]:
    """What a fetch wants when a session went like this, request and all."""
    key = dial.source
    events: list[FetchEvent] = []
    if answer in ("done", "breaks off"):
        (request,) = fetch.step(Offered(key, OURS, ALL), now)
        assert request == Request(key, tuple(sorted(ALL - fetch.verified))), "all that is missing"
        sent = request.segments if answer == "done" else request.segments[:1]
        events += [SegmentVerified(key, segment) for segment in sent]
    failure = SourceFailed(key, Reason.TRANSFER_FAILED, another_transport=True)
    match answer:
        case "done":
            events.append(Completed(key))
        case "is busy":
            events.append(Busy(key, RETRY_S))
        case "fails":
            events.append(replace(failure, reason=Reason.CONNECTION_LOST))
        case _:
            events.append(failure)
    wanted = [effect for event in events for effect in fetch.step(event, now)]
    assert wanted == ([Conclude(key)] if answer == "done" else []), "nothing before it ended"
    return list(fetch.step(SourceEnded(key), now))


def as_now(scripts: list[list[str]]) -> Trace:
    """What the machine does with the same sources."""
    fetch, trace, now = Fetch(FetchOptions(1, QUEUE_S), 0.0), Trace(), 0.0
    wanted = list(fetch.step(SourcesFound(tuple(range(len(scripts)))), now))
    while True:
        (effect,) = wanted
        match effect:
            case Dial():
                trace.append(("dial", effect.source, effect.stepped_down))
                script = scripts[effect.source]
                answer = script.pop(0) if script else "fails"
                wanted = answered(fetch, effect, answer, now)
            case Wait():
                trace.append(("wait", effect.sources, effect.until))
                now = effect.until
                wanted = list(fetch.handle_timeout(now))
            case Finish():
                return [*trace, ("end", effect.state, effect.reason)]


def histories(sources: int, length: int) -> Iterator[list[list[str]]]:
    for answers in product(product(ANSWERS, repeat=length), repeat=sources):
        yield [list(answer) for answer in answers]


@pytest.mark.parametrize(("sources", "length"), [(0, 1), (1, 5), (2, 2), (3, 1)])
def test_one_source_at_a_time_is_asked_as_before(sources: int, length: int) -> None:
    for scripts, same in zip(histories(sources, length), histories(sources, length), strict=True):
        told = str(scripts)
        assert as_now(scripts) == as_before(same), told
