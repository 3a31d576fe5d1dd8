"""Exhaustive search: nothing a peer says, and no few faults, bring the two to a wrong end."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

import pytest

from netloader.config import Secret
from netloader.fsm import client as client_side
from netloader.fsm import server as server_side
from netloader.fsm.effects import JoinTransport, OpenTransport, StartTransfer
from netloader.fsm.events import TransportRefused
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Purpose
from netloader.fsm.reasons import Reason
from netloader.fsm.session import Session
from netloader.fsm.states import State
from netloader.fsm.terms import CatalogEntry, FetchSpec, Sibling
from tests.property.search import search_alone, search_pair
from tests.support.messages import (
    BOTH,
    CURIOUS,
    DIGESTS,
    DRAFT_DIGESTS,
    DRAFTING,
    FINISHED,
    GUARDED,
    MANIFEST,
    OFFERING,
    OTHER_IDENTITY,
    RESUMING,
    SECURED,
    TARGETING,
    TOKEN,
    WISH,
    client,
    one_of_a_host,
    server,
)
from tests.support.world import Choice, World

pytestmark = pytest.mark.timeout(900)  # one of them takes 90 s on a core of its own

PeerGroup: TypeAlias = tuple[FetchSpec, *tuple[CatalogEntry, ...]]
"""A client, and what its server offers."""

GUARDED_BOTH: Final = tuple(replace(entry, tokens=(TOKEN,)) for entry in BOTH)
MAKERS: Final[dict[str, tuple[Any, tuple[Callable[[], Session], ...]]]] = {
    "client": (
        client_side.TABLE,
        (
            client,
            lambda: client(SECURED),
            lambda: client(CURIOUS),
            lambda: client(replace(CURIOUS, token=TOKEN)),
            lambda: client(RESUMING),
            lambda: client(FINISHED),
        ),
    ),
    "server": (
        server_side.TABLE,
        (
            server,
            lambda: server(GUARDED),
            lambda: server(*BOTH),
            lambda: server(*GUARDED_BOTH),
            lambda: one_of_a_host(Sibling(OTHER_IDENTITY.hard, 20001)),
            lambda: one_of_a_host(Sibling(OTHER_IDENTITY.hard, 0)),
        ),
    ),
}
OLD: Final = Secret("the token before this one")
SHORTER: Final = replace(WISH, manifest=Manifest(MANIFEST.tensors[:1]))
EITHER: Final = replace(WISH, transports=("gloo", "tcp"))
HONEST: Final[dict[str, PeerGroup]] = {
    "plain": (WISH, OFFERING),
    "with a token": (SECURED, GUARDED),
    "two candidates": (EITHER, OFFERING),
    "two candidates with a token": (replace(EITHER, token=TOKEN), GUARDED),
    "curious": (CURIOUS, OFFERING),
    "curious with a token": (replace(CURIOUS, token=TOKEN), GUARDED),
    "curious with the newer of two tokens": (
        replace(CURIOUS, token=TOKEN),
        replace(OFFERING, tokens=(OLD, TOKEN)),
    ),
    "resuming": (RESUMING, OFFERING),
    "nothing left to ask": (FINISHED, OFFERING),
    "the model of two": (TARGETING, *BOTH),
    "the draft of two": (DRAFTING, *BOTH),
    "the draft of two with a token": (replace(DRAFTING, token=TOKEN), *GUARDED_BOTH),
}
PORTIONS: Final = {"one segment at a time": 1, "two segments at a time": 2, "nothing": 0}
"""How many segments the owner of a client asks for at a time."""
UNLIKE: Final[dict[str, PeerGroup]] = {
    "another model": (replace(WISH, identity=OTHER_IDENTITY), OFFERING),
    "a draft that is not there": (DRAFTING, BOTH[0]),
    "no role where there are two": (WISH, *BOTH),
    "fewer tensors": (SHORTER, OFFERING),
    "no transport in common": (replace(WISH, transports=("hccl",)), OFFERING),
    "a token only there": (WISH, GUARDED),
    "a token that is gone": (replace(SECURED, token=OLD), GUARDED),
    "a token only here": (SECURED, OFFERING),
}
MOST_FAULTS: Final = 2 if os.environ.get("HYPOTHESIS_PROFILE") == "quick" else 3
"""Fewer where a mistake is planted: each costs a search."""
FEWER_FAULTS: Final = 2
DONE: Final = ("DONE", "DONE")


def holds(world: World) -> None:
    """What is true of the two at any moment, whatever has happened: agreement, clean-or-dirty."""
    c, s = world.client_session, world.server_session
    starts = {
        who: [e for step in p.steps for e in step.effects if isinstance(e, StartTransfer)]
        for who, p in world.parties.items()
    }
    for who, started in starts.items():
        moved = [segment for start in started for segment in start.segments]
        assert len(moved) == len(set(moved)), f"once-each: {who}"
    if c.verdict is not None:
        assert c.verdict.weights_dirty == bool(starts["client"]), "clean-or-dirty"
    if s.verdict is not None:
        assert not s.verdict.weights_dirty, "a server's own weights are never touched"
    audits = {who: p.audits for who, p in world.parties.items()}
    assert audits["client"] == 0
    doubted = s.verdict is not None and s.verdict.reason is Reason.DIGEST_MISMATCH
    assert audits["server"] == int(doubted), "doubts-are-audited"
    if c.spec.purpose is Purpose.DESCRIBE:
        return  # the description is the last word, and a last word may be lost
    if c.state is State.DONE and c.requests.count:
        assert s.sent, "agreement: a client is only done after the server has sent everything"
        assert c.offer is not None
        assert c.offer.segment_digests == s.segment_digests, "same-bytes"
        drafting = c.spec.identity.hard.get("role") == "draft"
        assert s.segment_digests == (DRAFT_DIGESTS if drafting else DIGESTS), "what it asked for"
    if s.state is State.DONE:
        assert c.state is State.DONE, "a server is only done after its client"
    for who, party in world.parties.items():
        effects = [e for step in party.steps for e in step.effects]
        for kind in (OpenTransport, JoinTransport):
            tried = [effect.transport for effect in effects if isinstance(effect, kind)]
            assert len(tried) == len(set(tried)), f"each-candidate-once: {who}"
    if starts["client"] or starts["server"]:
        assert c.transport == s.transport, "agreement: both use one transport"
        assert s.opened, "open-before-asked"
    count = len(starts["client"])
    assert starts["client"] == starts["server"][:count], "both move the same"
    assert len(starts["server"]) <= count + 1, "one request at a time"


@pytest.mark.parametrize("side", MAKERS)
def test_an_adversary_brings_a_session_nowhere_and_every_row_fires(
    side: str, figures: list[str]
) -> None:
    table, makers = MAKERS[side]
    found = [search_alone(make) for make in makers]
    fired = set().union(*(f.rows for f in found))
    silent = [f"{r.source.name} {r.on.__name__} {r.guard} {r.action}" for r in table]
    silent = [text for text, r in zip(silent, table, strict=True) if id(r) not in fired]

    figures.append(
        f"{side} against an adversary: {sum(f.nodes for f in found)} nodes, "
        f"{sum(f.edges for f in found)} edges, {sum(f.seconds for f in found):.2f} s; "
        f"{len(table) - len(silent)} of {len(table)} rows fired"
    )
    assert silent == []


@pytest.mark.parametrize("pair", HONEST)
def test_without_a_fault_every_order_of_events_ends_well(pair: str) -> None:
    spec, *entries = HONEST[pair]

    assert search_pair(lambda: World(spec, *entries), 0, holds).ends == {DONE}


@pytest.mark.parametrize("pair", UNLIKE)
def test_sides_that_differ_both_fall_back_and_no_byte_moves(pair: str) -> None:
    spec, *entries = UNLIKE[pair]

    def still(world: World) -> None:
        holds(world)
        assert not any(p.moves for p in world.parties.values())

    assert search_pair(lambda: World(spec, *entries), 0, still).ends == {("FALLBACK", "FALLBACK")}
    assert DONE not in search_pair(lambda: World(spec, *entries), 2, still).ends


@pytest.mark.parametrize("pair", HONEST)
def test_no_few_faults_bring_the_two_to_a_wrong_end_or_to_none(
    pair: str, figures: list[str]
) -> None:
    spec, *entries = HONEST[pair]
    found = search_pair(lambda: World(spec, *entries), MOST_FAULTS, holds)

    figures.append(
        f"{pair}, up to {MOST_FAULTS} faults: {found.nodes} nodes, {found.edges} edges, "
        f"{found.seconds:.2f} s; {len(found.rows)} rows fired"
    )
    assert {DONE, ("FALLBACK", "FALLBACK")} <= found.ends


class Refusing(World):
    """The first candidate cannot be opened or joined, as either side may find out at any point."""

    def faults(self) -> list[Choice]:
        """Nothing else goes wrong."""
        return [
            fault
            for fault in super().faults()
            if fault.what == "refuses the transport"
            and getattr(self.parties[fault.who].work[0], "transport", "") == "gloo"
        ]


@pytest.mark.parametrize("secured", [False, True])
def test_what_either_side_refuses_goes_over_the_next_transport_in_the_same_session(
    secured: bool, figures: list[str]
) -> None:
    token = TOKEN if secured else None
    pair = (replace(EITHER, token=token), replace(OFFERING, tokens=(TOKEN,) if secured else ()))

    def stepped_down(world: World) -> None:
        holds(world)
        if world.client_session.state is State.DONE:
            refusals = [
                step.event
                for party in world.parties.values()
                for step in party.steps
                if isinstance(step.event, TransportRefused)
            ]
            over = "tcp" if refusals else "gloo"
            assert world.client_session.transport == world.server_session.transport == over

    found = search_pair(lambda: Refusing(*pair), 2, stepped_down)

    figures.append(f"a candidate that either side refuses: {found.nodes} nodes, all end well")
    assert found.ends == {DONE}


def in_portions(size: int) -> World:
    """A client that asks for so many segments at a time, and its server."""
    world = World(WISH, OFFERING)
    world.portion = size
    return world


@pytest.mark.parametrize("portion", PORTIONS)
def test_repeated_requests_keep_the_laws_with_any_fault(portion: str, figures: list[str]) -> None:
    size = PORTIONS[portion]

    def agreed(world: World) -> None:
        holds(world)
        c, s = world.client_session, world.server_session
        if s.state is State.DONE and s.verdict is not None:
            assert s.requests.asked == c.requests.asked, "agreement: all that was asked was sent"
            assert s.verdict.reason is (Reason.VERIFIED if size else Reason.NOT_NEEDED)

    found = search_pair(lambda: in_portions(size), FEWER_FAULTS, agreed)

    figures.append(
        f"{portion}, up to {FEWER_FAULTS} faults: {found.nodes} nodes, {found.edges} edges, "
        f"{found.seconds:.2f} s; {len(found.rows)} rows fired"
    )
    assert search_pair(lambda: in_portions(size), 0, agreed).ends == {DONE}
    assert {DONE, ("FALLBACK", "FALLBACK")} <= found.ends


def test_a_server_that_gets_its_segments_later_is_asked_for_them_then(figures: list[str]) -> None:
    def growing() -> World:
        world = World(WISH, OFFERING)
        world.coming = (1, 2)
        return world

    found = search_pair(growing, 1, holds)

    figures.append(f"a growing server, up to 1 fault: {found.nodes} nodes, {found.edges} edges")
    assert search_pair(growing, 0, holds).ends == {DONE}
    assert {DONE, ("FALLBACK", "FALLBACK")} <= found.ends
