"""One of every kind of event, right ones and wrong ones: what an adversary has to say."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from netloader.fsm.events import (
    Ask,
    Connected,
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    Event,
    Finish,
    MoreAvailable,
    OfferReady,
    OfferRefused,
    StopRequested,
    TransferFailed,
    Transferred,
    TransportJoined,
    TransportReady,
    TransportRefused,
    Violated,
)
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, root_digest
from netloader.fsm.messages import (
    Answer,
    Begin,
    Candidate,
    Challenge,
    Complete,
    Description,
    Have,
    Hello,
    Offer,
    Opened,
    Reject,
    Request,
    Start,
    Unopened,
    Verified,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.terms import MAX_LANES, MAX_RENDEZVOUS_BYTES
from tests.support.messages import (
    ANSWER,
    ASK,
    CHALLENGE,
    CURIOUS,
    DESCRIPTION,
    DOUBT,
    DRAFTING,
    IDENTITY,
    MANIFEST,
    NBYTES,
    OFFER,
    OFFER_READY,
    OTHER_IDENTITY,
    PROVEN_DESCRIPTION,
    PROVEN_OFFER,
    RECEIVED,
    REFUSAL,
    REQUEST,
    ROOT,
    SEGMENT_BYTES,
    SERVER_NONCE,
    START,
    TOKEN,
    TWO,
    VERIFIED,
    WISH,
    hello,
    proven,
)

REST: Final = NBYTES - SEGMENT_BYTES
"""Bytes of all segments but the first."""
OTHER_MANIFEST: Final = Manifest(MANIFEST.tensors[:1])

OTHER_DIGESTS: Final = ("another-0", "another-1", "another-2")
CHANGED_IDENTITY: Final = Identity(IDENTITY.hard, {**IDENTITY.soft, "builder": "another"})
"""No different one: a soft field more."""
WISHES: Final = (
    WISH,
    CURIOUS,
    replace(WISH, identity=OTHER_IDENTITY),
    replace(CURIOUS, identity=OTHER_IDENTITY),
    replace(WISH, transports=("hccl",)),
    DRAFTING,
)
HELLOS: Final = tuple(map(hello, WISHES))
PROVEN_HELLOS: Final = tuple(hello(replace(wish, token=TOKEN)) for wish in WISHES)

LONG: Final = "x" * (MAX_RENDEZVOUS_BYTES + 1)
TWO_READY: Final = replace(OFFER_READY, candidates=TWO.candidates)


def refused(transport: str) -> TransportRefused:
    """A candidate that cannot be opened."""
    return TransportRefused(transport, Reason.TRANSFER_FAILED, "one device")


SAMPLES: Final[Mapping[type[Event], tuple[Event, ...]]] = {
    Start: (START, replace(START, versions=(7, 9)), replace(START, nonce=SERVER_NONCE)),
    Hello: (
        *(*HELLOS, replace(hello(), versions=(7, 9)), replace(hello(), versions=())),
        *(*PROVEN_HELLOS, replace(hello(), mac="forged"), replace(hello(), mac=CHALLENGE.mac)),
    ),
    Challenge: (
        *(CHALLENGE, Challenge(SERVER_NONCE, "forged")),
        proven(Challenge(SERVER_NONCE), replace(START, nonce=SERVER_NONCE)),
    ),
    Description: (
        DESCRIPTION,
        PROVEN_DESCRIPTION,
        replace(PROVEN_DESCRIPTION, facts={"tied": "no"}),
        replace(PROVEN_DESCRIPTION, identity=CHANGED_IDENTITY),
    ),
    Offer: (
        OFFER,
        PROVEN_OFFER,
        replace(PROVEN_OFFER, mac="forged"),
        replace(PROVEN_OFFER, segment_digests=OTHER_DIGESTS),
        replace(PROVEN_OFFER, segment_digests=OTHER_DIGESTS, root=root_digest(OTHER_DIGESTS)),
        replace(PROVEN_OFFER, identity=CHANGED_IDENTITY),
        replace(OFFER, identity=OTHER_IDENTITY),
        replace(OFFER, manifest=OTHER_MANIFEST),
        replace(OFFER, candidates=(Candidate("gloo"),)),
        TWO,
        replace(OFFER, candidates=OFFER.candidates * 2),
        replace(OFFER, candidates=()),
        replace(OFFER, candidates=(Candidate("tcp", {"key": LONG}),)),
        replace(OFFER, root="another"),
        replace(OFFER, availability=((0, 1),)),
        replace(PROVEN_OFFER, manifest=None),
        replace(OFFER, availability=((1, 1),)),
    ),
    Answer: (
        *(ANSWER, Answer("hccl"), Answer("gloo"), Answer("tcp", {"key": LONG})),
        *(proven(ANSWER, to) for to in (PROVEN_HELLOS[0], PROVEN_HELLOS[-1])),
    ),
    Opened: (Opened("tcp"), Opened("hccl")),
    Unopened: (Unopened("tcp", "no room"), Unopened("hccl", "one device")),
    Have: (Have(((1, 3),)), Have(((0, 3),)), Have(((2, 2),)), Have(())),
    Request: (
        *(REQUEST, Request(()), Request((1, 0)), Request((0,), MAX_LANES + 1)),
        *(Request((0,)), Request((1, 2), 2, 2), Request((0, 1), 1, 2), Request((), 1, 2)),
    ),
    Begin: (Begin(), Begin(2)),
    Complete: (Complete(NBYTES), Complete(0), Complete(SEGMENT_BYTES), Complete(REST, 2)),
    Verified: (
        *(VERIFIED, Verified(3, NBYTES, "another"), Verified(0, 0, ""), Verified(0, 0, ROOT)),
        Verified(1, SEGMENT_BYTES, ROOT),
    ),
    Reject: (REFUSAL, Reject("a word of the year 2040"), DOUBT),
    Violated: (Violated("bytes of another protocol"),),
    Connected: (Connected(),),
    ConnectFailed: (ConnectFailed("refused"),),
    ConnectionLost: (ConnectionLost("reset"),),
    DeadlinePassed: (DeadlinePassed(),),
    StopRequested: (StopRequested(), StopRequested(Reason.NOT_SERVING, "sleeping")),
    OfferReady: (OFFER_READY, replace(OFFER_READY, available=frozenset({0})), TWO_READY),
    MoreAvailable: (MoreAvailable(frozenset({1, 2})), MoreAvailable(frozenset())),
    OfferRefused: (OfferRefused(Reason.BUSY, "full", 2.0),),
    TransportReady: (TransportReady("tcp", {"key": "1"}), TransportReady("hccl")),
    TransportJoined: (TransportJoined("tcp"), TransportJoined("hccl")),
    TransportRefused: (refused("tcp"), refused("hccl")),
    Ask: (ASK, Ask((0,)), Ask((1, 2)), Ask(())),
    Finish: (Finish(),),
    Transferred: (RECEIVED,),
    TransferFailed: (TransferFailed(Reason.TRANSFER_STALLED, "silence"),),
}
