"""An attacker between client and server, who has no token: it cannot make a client accept a thing.

It passes challenge and proof on, and rewrites the rest. Real sockets, real `serve` and `fill`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from netloader.config import Deadlines, Secret
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import (
    Begin,
    Challenge,
    Complete,
    Description,
    Hello,
    Lane,
    Offer,
    Purpose,
    Request,
    Start,
    Verified,
)
from netloader.io import Outcome, fill
from netloader.io.describe import describe
from netloader.wire.frames import Spoken
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    Peer,
    Source,
    asking,
    contents,
    module_of,
    pretending,
    random,
    sealed,
    serving,
)
from tests.unit.io.on_path import OnPath, Rewrite, only

TOKEN = Secret("a token of sixteen characters")
FACTS = {"tie_word_embeddings": "true"}
CHANGED = "the offer was changed on its way, or the server has another token"


def model(seed: int) -> nn.Module:
    """One model; another seed is the same model with other weights."""
    return module_of(a=random(20_000, seed=seed), b=random(3_000, seed=seed + 1))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def attacked(
    stack: ExitStack,
    to_client: Rewrite = lambda said: said,
    to_server: Rewrite = lambda said: said,
    weights: bytes | None = None,
    identity: Mapping[str, str] = IDENTITY,
    **asked: Any,
) -> tuple[Outcome, nn.Module]:
    """What becomes of a client whose only way to its server leads through the attacker."""
    server = sealed(
        stack.enter_context(serving(model(1), identity, token=TOKEN, layouts=("raw", "processed")))
    )
    path = stack.enter_context(OnPath(server.endpoint, to_client, to_server, weights))
    target = model(50)
    options = asking(**{"token": TOKEN, "lanes": 1, **asked})
    return fill(target, [path.endpoint], IDENTITY, options), target


def refused(outcome: Outcome) -> str:
    """Why the only attempt failed, before anything was touched."""
    assert not outcome.ok
    assert not outcome.weights_dirty
    (attempt,) = outcome.attempts
    assert attempt.reason.value == "auth_failed", outcome.history()
    return attempt.detail


# -- the attack that this is about ---------------------------------------------------------------


def test_an_attackers_weights_under_an_attackers_digests_are_refused(stack: ExitStack) -> None:
    evil = Source(model(666), 64 * KIB)
    swap = only(
        Offer,
        lambda offer: replace(
            offer, segment_digests=evil.offer.segment_digests, root=evil.offer.root
        ),
    )

    outcome, target = attacked(stack, swap, weights=b"".join(evil.blocks))

    assert contents(target) == contents(model(50)), "the attacker's weights were loaded"
    assert refused(outcome) == CHANGED


def test_a_client_is_not_led_to_the_weights_of_another_model(stack: ExitStack) -> None:
    other = {**IDENTITY, "model": "another"}
    to_server = only(Hello, lambda hello: replace(hello, identity=Identity(other)))
    to_client = only(Offer, lambda offer: replace(offer, identity=Identity(IDENTITY)))

    outcome, target = attacked(stack, to_client, to_server, identity=other)

    assert contents(target) == contents(model(50)), "the other model's weights were loaded"
    assert "hello" in refused(outcome)


def test_an_offer_of_an_earlier_session_is_refused(stack: ExitStack) -> None:
    old = Source(model(1), 64 * KIB)
    server = sealed(stack.enter_context(serving(model(1), token=TOKEN)))
    path = stack.enter_context(OnPath(server.endpoint))
    assert fill(model(50), [path.endpoint], IDENTITY, asking(token=TOKEN, lanes=1)).ok
    recorded = next(said for said in path.heard if isinstance(said, Offer))
    updated = sealed(stack.enter_context(serving(model(200), token=TOKEN)))

    target = model(50)
    weights = b"".join(old.blocks)
    replay = stack.enter_context(
        OnPath(
            updated.endpoint,
            to_client=only(Offer, lambda offer: replace(recorded, session=offer.session)),
            weights=weights,
        )
    )
    outcome = fill(target, [replay.endpoint], IDENTITY, asking(token=TOKEN, lanes=1))
    assert contents(target) == contents(model(50)), "the weights from before were loaded"
    assert refused(outcome) == CHANGED


def test_a_recorded_conversation_convinces_nobody(stack: ExitStack) -> None:
    server = sealed(stack.enter_context(serving(model(1), token=TOKEN)))
    path = stack.enter_context(OnPath(server.endpoint))
    assert fill(model(50), [path.endpoint], IDENTITY, asking(token=TOKEN, lanes=1)).ok

    def repeat(peer: Peer) -> None:
        for said in path.heard:
            if isinstance(said, Challenge | Offer | Begin | Complete):
                peer.say(said)
                peer.hear()

    replayed = stack.enter_context(pretending(repeat))
    assert refused(fill(model(50), [replayed], IDENTITY, asking(token=TOKEN, lanes=1)))

    start, hello = (next(s for s in path.heard if isinstance(s, k)) for k in (Start, Hello))
    with Peer.call(server.endpoint) as peer:
        peer.say(start)
        assert isinstance(peer.hear(), Challenge)
        peer.say(hello)
        assert getattr(peer.hear(), "reason", "") == "auth_failed"


# -- every field, both ways ----------------------------------------------------------------------

OFFERS: dict[str, Callable[[Offer], Offer]] = {
    "no mac": lambda offer: replace(offer, mac=""),
    "layout": lambda offer: replace(offer, layout="processed"),
    "candidates": lambda offer: replace(offer, candidates=offer.candidates[::-1]),
    "identity": lambda offer: replace(offer, identity=Identity(IDENTITY, {"checkpoint": "x"})),
    "segment size": lambda offer: replace(offer, segment_bytes=96_000),
    "rendezvous": lambda offer: replace(
        offer, candidates=(replace(offer.candidates[0], rendezvous={"store": "10.0.0.66:1"}),)
    ),
    "root": lambda offer: replace(offer, root="0" * 64),
    "digest algorithm": lambda offer: replace(offer, digest_algorithm="none"),
    "segment digests": lambda offer: replace(offer, segment_digests=offer.segment_digests[::-1]),
    "manifest": lambda offer: replace(offer, manifest=Manifest(())),
}


@pytest.mark.parametrize("field", OFFERS)
def test_an_offer_that_was_changed_is_refused_whatever_was_changed(
    stack: ExitStack, field: str
) -> None:
    outcome, target = attacked(
        stack,
        only(Offer, OFFERS[field]),
        transports=("gloo", "tcp"),
        layouts=("raw", "processed"),
    )

    assert refused(outcome) == CHANGED
    assert contents(target) == contents(model(50))


def test_a_session_is_not_given_another_name(stack: ExitStack) -> None:
    real: list[str] = []

    def rename(offer: Offer) -> Offer:
        real.append(offer.session)
        return replace(offer, session="0" * 32)

    outcome, _ = attacked(
        stack, only(Offer, rename), only(Lane, lambda lane: replace(lane, session=real[0]))
    )

    assert refused(outcome) == CHANGED


HELLOS: dict[str, Callable[[Hello], Hello]] = {
    "versions": lambda hello: replace(hello, versions=(2, 0)),
    "place": lambda hello: replace(hello, serves_at="10.0.0.66:1"),
    "proof": lambda hello: replace(hello, mac="0" * 64),
    "identity": lambda hello: replace(hello, identity=Identity(IDENTITY, {"checkpoint": "x"})),
    "layouts": lambda hello: replace(hello, layouts=("raw",)),
    "transports": lambda hello: replace(hello, transports=("tcp",)),
    "digest algorithms": lambda hello: replace(hello, digest_algorithms=("blake3", "none")),
    "purpose": lambda hello: replace(hello, purpose=Purpose.DESCRIBE),
}


@pytest.mark.parametrize("field", HELLOS)
def test_a_hello_that_was_changed_is_refused_by_the_server(stack: ExitStack, field: str) -> None:
    outcome, _ = attacked(
        stack,
        to_server=only(Hello, HELLOS[field]),
        transports=("gloo", "tcp"),
        layouts=("raw", "processed"),
    )

    assert "hello was changed on its way" in refused(outcome)


STARTS: dict[str, Callable[[Start], Start]] = {
    "versions": lambda start: replace(start, versions=(2, 0)),
    "nonce": lambda start: replace(start, nonce="0" * 32),
}


@pytest.mark.parametrize("field", STARTS)
def test_a_start_that_was_changed_is_found_out_before_the_client_says_what_it_wants(
    stack: ExitStack, field: str
) -> None:
    said: list[Spoken] = []
    to_server = only(Start, STARTS[field])

    def noting(message: Spoken) -> Spoken:
        said.append(message)
        return to_server(message)

    outcome, _ = attacked(stack, to_server=noting)

    assert "start was changed on its way" in refused(outcome)
    assert not any(isinstance(message, Hello) for message in said)


DESCRIPTIONS: dict[str, Callable[[Description], Description]] = {
    "facts": lambda description: replace(description, facts={"tie_word_embeddings": "false"}),
    "a fact more": lambda description: replace(description, facts={**FACTS, "more": "x"}),
    "identity": lambda description: replace(description, identity=Identity({"model": "evil"})),
}


@pytest.mark.parametrize("field", DESCRIPTIONS)
def test_a_description_that_was_changed_is_not_believed(stack: ExitStack, field: str) -> None:
    server = stack.enter_context(serving(model(1), token=TOKEN, facts=FACTS))
    path = stack.enter_context(OnPath(server.endpoint, only(Description, DESCRIPTIONS[field])))
    options = asking(token=TOKEN)

    assert describe([path.endpoint], Identity({}), options).description is None
    told = describe([server.endpoint], Identity({}), options).description
    assert told is not None
    assert told.facts == FACTS


# -- what comes after the offer is not under a proof: the worst it does is to fail ----------------

IMPATIENT: Deadlines = replace(FAST, stall_s=2.0)
LATER: dict[str, tuple[Rewrite, Rewrite]] = {
    "fewer segments": (
        lambda said: said,
        only(Request, lambda request: replace(request, segments=request.segments[1:])),
    ),
    "other segments": (
        lambda said: said,
        only(Request, lambda request: replace(request, segments=request.segments[:1])),
    ),
    "more lanes": (lambda said: said, only(Request, lambda request: replace(request, lanes=2))),
    "another count": (only(Complete, lambda complete: Complete(1)), lambda said: said),
    "complete at once": (only(Begin, lambda begin: Complete(92_000)), lambda said: said),
    "begin twice": (only(Complete, lambda complete: Begin()), lambda said: said),
}


@pytest.mark.parametrize("words", LATER)
def test_rewriting_what_follows_an_offer_ends_in_a_failure(stack: ExitStack, words: str) -> None:
    to_client, to_server = LATER[words]

    outcome, _ = attacked(stack, to_client, to_server, deadlines=IMPATIENT)

    assert not outcome.ok


def test_rewriting_what_a_client_verified_misleads_its_server_only(stack: ExitStack) -> None:
    lie = only(Verified, lambda verified: Verified(0, 0, ""))

    outcome, target = attacked(stack, to_server=lie)

    assert outcome.ok
    assert contents(target) == contents(model(1))


def test_an_attacker_that_changes_bytes_alone_meets_the_digests(stack: ExitStack) -> None:
    outcome, _ = attacked(stack, weights=b"".join(Source(model(666), 64 * KIB).blocks))

    assert [a.reason.value for a in outcome.attempts] == ["digest_mismatch"]


def test_an_attacker_that_changes_nothing_is_a_relay(stack: ExitStack) -> None:
    outcome, target = attacked(stack, transports=("tcp",))

    assert outcome.ok
    assert contents(target) == contents(model(1))
    assert not torch.equal(target.get_parameter("a"), model(50).get_parameter("a"))
