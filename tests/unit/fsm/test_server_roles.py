"""One server, several models: the client's role says which of them a session is about."""

from dataclasses import replace
from typing import Final

import pytest

from netloader.config import Endpoint
from netloader.fsm.effects import PrepareOffer, Send, Settle
from netloader.fsm.events import Connected, Event, OfferRefused, Transferred
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import root_digest
from netloader.fsm.messages import Challenge, Complete, Description, Offer, Reject, Verified
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import Step
from netloader.fsm.states import State
from netloader.fsm.terms import MAX_OTHER_SOURCES, CatalogEntry, FetchSpec, Sibling, beside
from tests.support.messages import (
    BOTH,
    CURIOUS,
    DRAFT,
    DRAFT_DIGESTS,
    DRAFTING,
    OPEN_THERE,
    OTHER_IDENTITY,
    READY,
    REQUEST,
    START,
    TARGET,
    TARGETING,
    TOKEN,
    WISH,
    hello,
    one_of_a_host,
    said,
    server,
)

GUARDED_BOTH: Final = tuple(replace(entry, tokens=(TOKEN,)) for entry in BOTH)
LARGE_DRAFT: Final = replace(DRAFT, segment_bytes=1 << 26)
VISION: Final = replace(WISH, identity=Identity({**TARGET.identity.hard, "role": "vision"}))


def told(*siblings: Sibling, spec: FetchSpec = WISH) -> Reject | None:
    """What a server refuses to a client, where others on its host have these models."""
    session = one_of_a_host(*siblings)
    session.step(Connected(), 0.0)
    refused = [each for each in said(session.step(hello(spec), 0.0)) if isinstance(each, Reject)]
    return refused[0] if refused else None


ELSEWHERE: Final = replace(WISH, identity=OTHER_IDENTITY)


def test_a_client_of_another_model_of_the_host_is_sent_on_to_its_ports() -> None:
    siblings = (Sibling({"model": "mamba"}, 9), Sibling(OTHER_IDENTITY.hard, 7))
    refused = told(*siblings, Sibling({"model": "other"}, 5), spec=ELSEWHERE)
    assert refused is not None
    assert (refused.reason, refused.ports) == ("referred", (7, 9))
    curious = told(*siblings, spec=replace(CURIOUS, identity=OTHER_IDENTITY))
    assert curious == refused


def test_a_client_of_a_model_that_is_being_loaded_comes_again() -> None:
    refused = told(Sibling(OTHER_IDENTITY.hard, 0), spec=ELSEWHERE)
    assert refused is not None
    assert (refused.reason, refused.ports) == ("not_ready", ())
    assert refused.retry_after_s > 0


def test_what_is_here_is_served_here_and_what_is_nowhere_is_refused_by_field() -> None:
    assert told(Sibling(WISH.identity.hard, 7)) is None
    refused = told(Sibling({**OTHER_IDENTITY.hard, "tp_size": "2"}, 7), spec=ELSEWHERE)
    assert refused is not None
    assert (refused.reason, refused.differences[0].field) == ("identity_mismatch", "model")


def test_a_busy_server_names_the_ports_of_others_with_the_same_model() -> None:
    session = one_of_a_host(Sibling(WISH.identity.hard, 7), Sibling(OTHER_IDENTITY.hard, 8))
    session.step(Connected(), 0.0)
    session.step(hello(), 0.0)
    (refused,) = said(session.step(OfferRefused(Reason.BUSY, "full", 2.0), 0.0))
    assert isinstance(refused, Reject)
    assert refused.ports == (7,)


def test_ports_are_those_of_the_host_that_was_dialled_and_few() -> None:
    assert beside(Endpoint("a.test", 1), (0, 2, 70_000, 2, -1)) == (Endpoint("a.test", 2),)
    assert len(beside(Endpoint("a.test", 1), range(1, 1000))) == MAX_OTHER_SOURCES


def after(*events: Event, entries: tuple[CatalogEntry, ...] = BOTH) -> tuple[ServerSession, Step]:
    """A server of two models after these events, and its last step."""
    session = server(*entries)
    step = session.step(Connected(), 0.0)
    for event in events:
        step = session.step(event, 0.0)
    return session, step


@pytest.mark.parametrize(("spec", "place", "entry"), [(TARGETING, 0, TARGET), (DRAFTING, 1, DRAFT)])
def test_a_client_is_offered_the_model_of_its_role(
    spec: FetchSpec, place: int, entry: CatalogEntry
) -> None:
    session, step = after(hello(spec))
    (offer,) = said(session.step(READY[place], 0.0))

    assert step.effects == (PrepareOffer(("tcp",), "sha256", place),)
    assert isinstance(offer, Offer)
    assert (offer.identity, offer.manifest) == (entry.identity, None)
    assert hello(spec).manifest_digest == entry.manifest.digest
    assert offer.segment_digests == READY[place].segment_digests


def test_a_session_about_the_draft_counts_its_bytes_and_its_digests() -> None:
    nbytes = DRAFT.manifest.nbytes
    session, sent = after(hello(DRAFTING), READY[1], *OPEN_THERE, REQUEST, Transferred(nbytes))
    counted = session.asked_bytes
    step = session.step(Verified(3, nbytes, root_digest(DRAFT_DIGESTS)), 0.0)

    assert counted == nbytes < TARGET.manifest.nbytes
    assert said(sent) == [Complete(nbytes)]
    assert step.after is State.DONE


def test_the_frame_limit_is_that_of_the_chosen_model() -> None:
    entries = (TARGET, LARGE_DRAFT)
    (many, _), (one, _) = (after(hello(w), entries=entries) for w in (TARGETING, DRAFTING))

    assert one.frame_limit < many.frame_limit


@pytest.mark.parametrize("spec", [VISION, WISH], ids=["another role", "no role"])
def test_a_role_that_is_not_there_is_refused_by_its_name(spec: FetchSpec) -> None:
    session, step = after(hello(spec))
    (reject,) = said(step)

    assert session.state is State.FALLBACK
    assert isinstance(reject, Reject)
    (found,) = reject.differences
    asked = spec.identity.hard.get("role", "(absent)")
    assert (found.field, found.mine, found.theirs) == ("role", asked, "target")


def test_a_description_without_a_role_is_that_of_the_first_model() -> None:
    draft = replace(CURIOUS, identity=Identity({"role": "draft"}))

    assert said(after(hello(CURIOUS))[1]) == [Description(TARGET.identity, TARGET.facts)]
    assert said(after(hello(draft))[1]) == [Description(DRAFT.identity, DRAFT.facts)]


def test_a_refusal_names_what_the_chosen_model_does_not_support() -> None:
    other = replace(DRAFT, transports=("hccl",))
    _, step = after(hello(replace(DRAFTING, transports=("tcp",))), entries=(TARGET, other))
    settled = step.effects[-1]

    assert isinstance(settled, Settle)
    assert settled.verdict.reason is Reason.NOTHING_IN_COMMON
    assert settled.verdict.detail == "transports: server has hccl, client has tcp"


@pytest.mark.parametrize("spec", [DRAFTING, VISION])
def test_with_a_token_the_role_counts_only_after_the_proof(spec: FetchSpec) -> None:
    session, step = after(START, entries=GUARDED_BOTH)

    assert [type(message) for message in said(step)] == [Challenge]
    forged = after(START, replace(hello(spec), mac="forged"), entries=GUARDED_BOTH)[1]
    assert said(forged)[0].reason == "auth_failed"  # type: ignore[union-attr]
    answer = session.step(hello(replace(spec, token=TOKEN)), 0.0)
    offers = answer.effects == (PrepareOffer(("tcp",), "sha256", 1),)
    assert offers == (spec is DRAFTING)
    assert offers or isinstance(answer.effects[0], Send)
