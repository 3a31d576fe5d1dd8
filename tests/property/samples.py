"""One of every kind of event, right ones and wrong ones: what an adversary has to say."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from netloader.fsm.events import (
    Connected,
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    Event,
    OfferReady,
    OfferRefused,
    StopRequested,
    TransferFailed,
    Transferred,
    TransportReady,
    Violated,
)
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import (
    Begin,
    Challenge,
    Complete,
    Description,
    Hello,
    Offer,
    Proof,
    Reject,
    Request,
    Verified,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.server import MAX_LANES
from tests.property.world import (
    CHALLENGE,
    CURIOUS,
    DRAFTING,
    IDENTITY,
    MANIFEST,
    NBYTES,
    OFFER,
    OFFER_READY,
    OTHER_IDENTITY,
    PROOF,
    RECEIVED,
    REFUSAL,
    REQUEST,
    SERVER_NONCE,
    VERIFIED,
    WISH,
    hello,
)

OTHER_MANIFEST: Final = Manifest(MANIFEST.tensors[:1])

SAMPLES: Final[Mapping[type[Event], tuple[Event, ...]]] = {
    Hello: (
        hello(),
        hello(CURIOUS),
        replace(hello(), versions=(7, 9)),
        replace(hello(), versions=()),
        hello(replace(WISH, identity=OTHER_IDENTITY)),
        hello(replace(CURIOUS, identity=OTHER_IDENTITY)),
        hello(replace(WISH, transports=("hccl",))),
        hello(DRAFTING),
    ),
    Challenge: (CHALLENGE, Challenge(SERVER_NONCE, "forged")),
    Proof: (PROOF, Proof("forged"), Proof(CHALLENGE.mac)),
    Description: (Description(IDENTITY, {"tied": "yes"}),),
    Offer: (
        OFFER,
        replace(OFFER, identity=OTHER_IDENTITY),
        replace(OFFER, manifest=OTHER_MANIFEST),
        replace(OFFER, transport="gloo"),
    ),
    Request: (REQUEST, Request(()), Request((1, 0)), Request((0,), MAX_LANES + 1)),
    Begin: (Begin(),),
    Complete: (Complete(NBYTES), Complete(0)),
    Verified: (VERIFIED, Verified(3, NBYTES, "another"), Verified(0, 0, "")),
    Reject: (REFUSAL, Reject("a word of the year 2040")),
    Violated: (Violated("bytes of another protocol"),),
    Connected: (Connected(),),
    ConnectFailed: (ConnectFailed("refused"),),
    ConnectionLost: (ConnectionLost("reset"),),
    DeadlinePassed: (DeadlinePassed(),),
    StopRequested: (StopRequested(), StopRequested(Reason.NOT_SERVING, "sleeping")),
    OfferReady: (OFFER_READY,),
    OfferRefused: (OfferRefused(Reason.BUSY, "full", 2.0),),
    TransportReady: (TransportReady(),),
    Transferred: (RECEIVED,),
    TransferFailed: (TransferFailed(Reason.TRANSFER_STALLED, "silence"),),
}
