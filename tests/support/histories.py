"""Lives: how a session gets where it is, in the words of whoever reads a failing test."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

from netloader.fsm.events import (
    Ask,
    Connected,
    ConnectionLost,
    Event,
    Finish,
    Transferred,
    TransportReady,
    TransportRefused,
)
from netloader.fsm.messages import (
    Answer,
    Begin,
    Complete,
    Have,
    Request,
    Unopened,
    Verified,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.session import Session
from tests.support.messages import (
    ANSWER,
    ASK,
    BOTH,
    CHALLENGE,
    CURIOUS,
    DESCRIPTION,
    DOUBT,
    DRAFTING,
    GUARDED,
    NBYTES,
    OFFER,
    OFFER_READY,
    OPEN_HERE,
    OPEN_THERE,
    PROOF,
    PROVEN_OFFER,
    READY,
    RECEIVED,
    REFUSAL,
    REQUEST,
    RESUMING,
    ROOT,
    SECURED,
    SEGMENT_BYTES,
    START,
    TOKEN,
    TWO,
    VERIFIED,
    client,
    hello,
    server,
)

Life: TypeAlias = tuple[Callable[[], Session], tuple[Event, ...]]

_asked: Final = (Connected(), OFFER, *OPEN_HERE, ASK)
_moving: Final = (*_asked, Begin())
_requested: Final = (Connected(), hello(), OFFER_READY, *OPEN_THERE, REQUEST)
REFUSED: Final = TransportRefused("hccl", Reason.TRANSFER_FAILED, "one device")
_first: Final = (
    *(*_asked[:-1], Ask((0,)), Begin()),
    *(Transferred(SEGMENT_BYTES), Complete(SEGMENT_BYTES)),
)
"""A client that asks for one segment first."""
TWO_READY: Final = replace(OFFER_READY, candidates=TWO.candidates)
_superseded: Final = (Answer("hccl"), ANSWER)
SOME: Final = replace(OFFER, availability=((0, 1),))
SOME_READY: Final = replace(OFFER_READY, available=frozenset({0}))
_first_sent: Final = (*_requested[:-1], Request((0,)), Transferred(SEGMENT_BYTES))

LIVES: Final[Mapping[str, Life]] = {
    "client listens": (client, ()),
    "client greeted": (client, (Connected(),)),
    "client with a token greeted": (lambda: client(SECURED), (Connected(),)),
    "client proved": (lambda: client(SECURED), (Connected(), CHALLENGE)),
    "client is curious": (lambda: client(CURIOUS), (Connected(),)),
    "client opens its transport": (client, _asked[:2]),
    "client answered": (client, _asked[:3]),
    "client joined": (client, _asked[:4]),
    "client steps down": (client, (Connected(), TWO, REFUSED)),
    "client gave an answer up": (
        client,
        (Connected(), TWO, TransportReady("hccl"), REFUSED, TransportReady("tcp")),
    ),
    "client joins what the server refused": (
        client,
        (Connected(), TWO, TransportReady("hccl"), Unopened("hccl", "one device")),
    ),
    "client is ready": (client, _asked[:-1]),
    "client asked": (client, _asked),
    "client receives": (client, _moving),
    "client resumes": (lambda: client(RESUMING), (*_asked[:-1], Ask((0, 2)), Begin())),
    "client received a part": (client, _first),
    "client received a part and was cut off": (client, (*_first, ConnectionLost("reset"))),
    "client asked for the rest": (client, (*_first, Ask((1, 2)))),
    "client receives the rest": (client, (*_first, Ask((1, 2)), Begin(2))),
    "client needs nothing": (client, (*_asked[:-1], Finish())),
    "client received all": (client, (*_moving, RECEIVED)),
    "client was told all is sent": (client, (*_moving, Complete(NBYTES))),
    "client carries on alone": (client, (*_moving, Complete(NBYTES), ConnectionLost("reset"))),
    "client has all": (client, (*_moving, RECEIVED, Complete(NBYTES))),
    "client is done": (client, (*_moving, RECEIVED, Complete(NBYTES), Finish())),
    "client learned": (
        lambda: client(CURIOUS),
        (Connected(), DESCRIPTION),
    ),
    "client with a token was offered": (
        lambda: client(SECURED),
        (Connected(), CHALLENGE, PROVEN_OFFER),
    ),
    "client proved to describe": (
        lambda: client(replace(CURIOUS, token=TOKEN)),
        (Connected(), CHALLENGE),
    ),
    "client waits for more": (client, (*_asked[:1], SOME, *OPEN_HERE)),
    "client heard of more": (client, (*_asked[:1], SOME, *OPEN_HERE, Have(((1, 2),)))),
    "client fell back": (client, (Connected(), REFUSAL)),
    "client fell back dirty": (client, (*_moving, ConnectionLost("reset"))),
    "server listens": (server, ()),
    "server is connected": (server, (Connected(),)),
    "server with a token is connected": (lambda: server(GUARDED), (Connected(),)),
    "server challenged": (lambda: server(GUARDED), (Connected(), START)),
    "server offered a part": (server, (*_requested[:2], SOME_READY)),
    "server sends a part of what it has": (
        server,
        (*_requested[:2], SOME_READY, *OPEN_THERE, Request((0,))),
    ),
    "server prepares": (server, _requested[:2]),
    "server offered": (server, _requested[:3]),
    "server joins": (server, _requested[:4]),
    "server joins what the client gave up": (server, (*_requested[:2], TWO_READY, *_superseded)),
    "server is open": (server, _requested[:-1]),
    "server sends": (server, _requested),
    "server sent all": (server, (*_requested, RECEIVED)),
    "server sent a part": (server, _first_sent),
    "server sends the rest": (server, (*_first_sent, Request((1, 2), 2, 2))),
    "server was not needed": (server, (*_requested[:-1], Verified(0, 0, ROOT))),
    "server is done": (server, (*_requested, RECEIVED, VERIFIED)),
    "server described": (server, (Connected(), hello(CURIOUS))),
    "server of two is connected": (lambda: server(*BOTH), (Connected(),)),
    "server of two offered its draft": (
        lambda: server(*BOTH),
        (Connected(), hello(DRAFTING), READY[1]),
    ),
    "server with a token prepares": (
        lambda: server(GUARDED),
        (Connected(), START, PROOF),
    ),
    "server was doubted": (server, (*_requested, RECEIVED, DOUBT)),
    "server fell back": (server, (*_requested, Verified(0, 0, ""))),
}


def lived(name: str) -> Session:
    """A session that has had this life, at time 0."""
    make, events = LIVES[name]
    session = make()
    for happened in events:
        session.step(happened, 0.0)
    return session
