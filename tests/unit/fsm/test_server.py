"""The server: whom it lets in, and what it offers."""

from dataclasses import replace

import pytest

from netloader.fsm.effects import PrepareOffer, Send, Settle, Verdict
from netloader.fsm.events import Connected, Event, OfferReady, OfferRefused, TransferFailed
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, TensorSpec, segment_count
from netloader.fsm.messages import Description, Purpose, Reject, Request, Status
from netloader.fsm.reasons import Reason
from netloader.fsm.server import TABLE
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import FRAME_BEFORE_TRUST, Step
from netloader.fsm.states import State
from netloader.fsm.terms import MAX_LANES, CatalogEntry
from netloader.wire.frames import encode
from tests.support.histories import lived
from tests.support.messages import (
    BRIEF,
    CURIOUS,
    DEADLINES,
    DIGESTS,
    GUARDED,
    IDENTITY,
    MANIFEST,
    NBYTES,
    OFFER,
    OFFER_READY,
    OFFERING,
    OTHER_IDENTITY,
    START,
    WISH,
    hello,
    said,
    server,
)

OTHER = hello(replace(WISH, identity=OTHER_IDENTITY))
UNABLE = hello(replace(WISH, transports=("hccl",), digest_algorithms=()))


def after(*events: Event, entry: CatalogEntry = OFFERING) -> tuple[ServerSession, Step]:
    """A connected server after these events, and its last step."""
    session = server(entry)
    step = session.step(Connected(), 0.0)
    for event in events:
        step = session.step(event, 0.0)
    return session, step


def verdict(step: Step) -> Verdict:
    settled = step.effects[-1]
    assert isinstance(settled, Settle)
    return settled.verdict


def test_a_server_sends_nothing_before_the_hello() -> None:
    session, step = after()

    assert (session.state, session.name, step.effects) == (State.HANDSHAKE, "session-1", ())


def test_a_server_waits_as_long_as_each_phase_may_take() -> None:
    names = ("server listens", "server is connected", "server offered", "server sends")

    timeouts = [lived(name).next_timeout() for name in names]

    handshake, transfer = DEADLINES.handshake_s, DEADLINES.transfer_s(NBYTES)
    assert timeouts == [handshake, handshake, DEADLINES.validate_s, transfer]


# -- hello ---------------------------------------------------------------------------------------


def test_a_good_hello_gets_an_offer_prepared_by_the_clients_preference() -> None:
    session, step = after(hello())

    assert session.state is State.VALIDATE
    assert step.effects == (PrepareOffer(("tcp",), "sha256", 0),)
    first_choice = replace(WISH, transports=("gloo", "tcp"))
    assert after(hello(first_choice))[1].effects == (PrepareOffer(("gloo", "tcp"), "sha256", 0),)


@pytest.mark.parametrize(("versions", "theirs"), [((1, 3), "1, 3"), ((), "none")])
def test_an_unknown_version_is_refused_with_both_sides_versions(
    versions: tuple[int, ...], theirs: str
) -> None:
    _, step = after(replace(hello(), versions=versions))

    assert verdict(step).reason is Reason.UNSUPPORTED_VERSION
    assert verdict(step).detail == f"the server speaks version 2, the client {theirs}"


def test_a_newer_client_that_supports_this_version_is_served() -> None:
    assert after(replace(hello(), versions=(3, 2)))[0].state is State.VALIDATE


def test_another_model_is_refused_with_every_differing_field() -> None:
    _, step = after(OTHER)

    assert verdict(step).reason is Reason.IDENTITY_MISMATCH
    assert verdict(step).detail == "differing: model"
    (reject,) = said(step)
    assert isinstance(reject, Reject)
    ((found),) = reject.differences
    assert (found.field, found.mine, found.theirs) == ("model", "mamba", "llama")
    assert "SOURCE" in found.remedy


def test_nothing_in_common_is_refused_with_what_both_sides_have() -> None:
    _, step = after(UNABLE)

    assert verdict(step).reason is Reason.NOTHING_IN_COMMON
    assert verdict(step).detail == (
        "transports: server has tcp, gloo, client has hccl; "
        "digest algorithms: server has sha256, client has none"
    )


def test_a_description_takes_no_place() -> None:
    _, step = after(hello(CURIOUS))

    described = Settle(Verdict(State.DONE, Reason.DESCRIBED))
    assert step.effects == (Send(Description(IDENTITY, {"tied": "yes"})), described)


def test_a_status_comes_with_the_manifest_that_is_not_known_yet() -> None:
    status = Status("offered", ("",), 4, 0, 2, 0, 0, 65_536, 1, 1, (), ("tcp",), "sha256", "root")
    asked = replace(CURIOUS, purpose=Purpose.STATUS)
    entry = replace(OFFERING, status=status)

    (told,) = said(after(hello(asked), entry=entry)[1])
    assert told == Description(IDENTITY, {"tied": "yes"}, status, MANIFEST)
    (told,) = said(after(hello(replace(asked, manifest=MANIFEST)), entry=entry)[1])
    assert told == Description(IDENTITY, {"tied": "yes"}, status, None)
    (told,) = said(after(hello(CURIOUS), entry=entry)[1])
    assert told == Description(IDENTITY, {"tied": "yes"}), "a client that loads needs neither"


def test_a_description_is_for_the_same_model_only() -> None:
    _, step = after(hello(replace(CURIOUS, identity=Identity({"model": "mamba"}))))

    assert verdict(step).reason is Reason.IDENTITY_MISMATCH


# -- frames ----------------------------------------------------------------------------------------


def test_before_and_after_the_conversation_a_client_may_hardly_say_anything() -> None:
    limits = [server().frame_limit, after()[0].frame_limit]
    limits += [after(START, entry=GUARDED)[0].frame_limit]
    refused = after(hello(replace(WISH, identity=OTHER_IDENTITY)))[0]
    described = after(hello(CURIOUS))[0]
    limits += [refused.frame_limit, described.frame_limit]

    assert limits == [FRAME_BEFORE_TRUST] * 5


def test_the_longest_thing_a_client_may_say_is_a_request_for_every_segment() -> None:
    # Reading 64 MiB of JSON would hold the interpreter lock, and with it inference, for a second.
    tensor = TensorSpec("experts", "bfloat16", (2**35,), (1,), 2**36)  # a million segments
    entry = replace(OFFERING, manifest=Manifest((tensor,)))
    count = segment_count(tensor.nbytes, entry.segment_bytes)
    session, _ = after(hello(), entry=entry)
    request = encode(Request(tuple(range(count)), MAX_LANES))

    assert FRAME_BEFORE_TRUST < len(request) <= session.frame_limit < 2 * len(request)
    assert after(hello())[0].frame_limit < FRAME_BEFORE_TRUST + 1000


# -- the offer -----------------------------------------------------------------------------------


def test_an_offer_says_all_that_a_client_must_know() -> None:
    session, step = after(hello(), OFFER_READY)

    assert (session.state, step.effects) == (State.VALIDATE, (Send(BRIEF),))


def test_a_manifest_travels_only_where_it_differs() -> None:
    unlike = replace(hello(), manifest_digest="d" * 64)

    assert said(after(unlike, OFFER_READY)[1]) == [OFFER]
    assert said(after(replace(hello(), manifest_digest=""), OFFER_READY)[1]) == [OFFER]


def test_a_full_server_says_when_to_come_again() -> None:
    _, step = after(hello(), OfferRefused(Reason.BUSY, "all 2 places are taken", 2.5))

    assert said(step) == [Reject("busy", "all 2 places are taken", (), 2.5)]
    assert (verdict(step).reason, verdict(step).retry_after_s) == (Reason.BUSY, 2.5)


def test_a_transport_that_cannot_be_prepared_ends_the_session() -> None:
    _, step = after(hello(), TransferFailed(Reason.TRANSFER_FAILED, "no port"))

    assert said(step) == [Reject("transfer_failed", "no port")]


# -- a session that somebody tampered with -------------------------------------------------------


def test_a_state_that_was_set_by_hand_raises_and_sends_nothing() -> None:
    session = server()
    session.state = State.VALIDATE

    with pytest.raises(AssertionError, match="after a hello"):
        session.step(OfferReady((), DIGESTS), 0.0)

    assert (session.state, session.verdict, session.offered) == (State.VALIDATE, None, False)


@pytest.mark.parametrize(
    ("action", "event", "told"),
    [("challenge", START, "guarded by")],
)
def test_an_action_whose_guard_was_taken_away_does_not_go_on(
    action: str, event: Event, told: str
) -> None:
    unguarded = next(r for r in TABLE if (r.action, r.on) == (action, type(event)))

    with pytest.raises(AssertionError, match=told):
        list(unguarded.do(server(), event))
