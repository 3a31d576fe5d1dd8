"""Two parties without a socket: their terms, their sessions and the messages between them."""

from dataclasses import replace
from typing import Final

from netloader.config import Deadlines, Secret
from netloader.fsm import auth
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import Send
from netloader.fsm.events import (
    Ask,
    OfferReady,
    Transferred,
    TransportJoined,
    TransportReady,
)
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import MIN_SEGMENT_BYTES, Manifest, Progress, TensorSpec, root_digest
from netloader.fsm.messages import (
    Answer,
    Candidate,
    Description,
    Hello,
    Message,
    Offer,
    Opened,
    Purpose,
    Reject,
    Request,
    Start,
    Verified,
)
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import Step
from netloader.fsm.terms import CatalogEntry, FetchSpec, Sibling

DEADLINES: Final = Deadlines()
TOKEN: Final = Secret("correct horse battery staple")
CLIENT_NONCE: Final = "c" * 32
SERVER_NONCE: Final = "5" * 32
SEGMENT_BYTES: Final = MIN_SEGMENT_BYTES

IDENTITY: Final = Identity({"model": "llama", "tp_size": "1"}, {"checkpoint": "rev-1"})
OTHER_IDENTITY: Final = Identity({"model": "mamba", "tp_size": "1"})
MANIFEST: Final = Manifest(
    (
        TensorSpec("embed", "bfloat16", (300, 256), (256, 1), 153_600),
        TensorSpec("empty", "bfloat16", (0, 256), (256, 1), 0),
        TensorSpec("scale", "float32", (), (), 4),
        TensorSpec("lm_head", "bfloat16", (300, 256), (256, 1), 153_600, shares=0),
    )
)
NBYTES: Final = 153_604
DIGESTS: Final = ("digest-0", "digest-1", "digest-2")
ROOT: Final = root_digest(DIGESTS)

WISH: Final = FetchSpec(
    purpose=Purpose.WEIGHTS,
    identity=IDENTITY,
    manifest=MANIFEST,
    layouts=("raw",),
    transports=("hccl", "tcp"),
    digest_algorithms=("blake3", "sha256"),
    lanes=2,
)
SECURED: Final = replace(WISH, token=TOKEN)
CURIOUS: Final = FetchSpec(Purpose.DESCRIBE, Identity({"model": "llama"}))
HELD: Final = Progress("sha256", SEGMENT_BYTES, DIGESTS, frozenset({1}))
RESUMING: Final = replace(WISH, progress=HELD)
FINISHED: Final = replace(WISH, progress=replace(HELD, verified=frozenset({0, 1, 2})))

OFFERING: Final = CatalogEntry(
    identity=IDENTITY,
    manifest=MANIFEST,
    segment_bytes=SEGMENT_BYTES,
    layouts=("raw", "processed"),
    transports=("tcp", "gloo"),
    digest_algorithms=("sha256",),
    facts={"tied": "yes"},
)
GUARDED: Final = replace(OFFERING, tokens=(TOKEN,))

TARGET: Final = replace(
    OFFERING, identity=Identity({**IDENTITY.hard, "role": "target"}, IDENTITY.soft)
)
DRAFT: Final = replace(
    OFFERING,
    identity=Identity({**IDENTITY.hard, "role": "draft"}),
    manifest=Manifest(MANIFEST.tensors[:1]),
    facts={"role": "draft"},
)
BOTH: Final = (TARGET, DRAFT)
"""What one server offers of a model and of its draft."""
TARGETING: Final = replace(WISH, identity=TARGET.identity)
DRAFTING: Final = replace(WISH, identity=DRAFT.identity, manifest=DRAFT.manifest)


def client(spec: FetchSpec = WISH, now: float = 0.0) -> ClientSession:
    """A client that waits for its connection."""
    return ClientSession(spec, DEADLINES, CLIENT_NONCE, now)


def server(*entries: CatalogEntry) -> ServerSession:
    """A server that waits for its connection; it offers OFFERING unless told otherwise."""
    return ServerSession(entries or (OFFERING,), DEADLINES, "session-1", SERVER_NONCE, 0.0)


def one_of_a_host(*siblings: Sibling) -> ServerSession:
    """A server that knows what others on its host have."""
    alone = server()
    given = (DEADLINES, alone.session_id, SERVER_NONCE, 0.0, siblings)
    return ServerSession(alone.entries, *given)


def said(step: Step) -> list[Message]:
    """What a step tells the peer."""
    return [effect.message for effect in step.effects if isinstance(effect, Send)]


START: Final = Start((2,), CLIENT_NONCE)
"""The first words of a client with a token."""
CHALLENGE: Final = auth.challenge((TOKEN,), START, SERVER_NONCE)


def hello(spec: FetchSpec = WISH) -> Hello:
    """What a client with this spec says of itself: first, or with a token after CHALLENGE."""
    session = client(spec)
    session.challenge = None if spec.token is None else CHALLENGE
    return session.hello


OFFER: Final = Offer(
    session="session-1",
    identity=IDENTITY,
    layout="raw",
    candidates=(Candidate("tcp", {"port": "1"}),),
    digest_algorithm="sha256",
    manifest=MANIFEST,
    segment_bytes=SEGMENT_BYTES,
    segment_digests=DIGESTS,
    root=ROOT,
)
TWO: Final = replace(OFFER, candidates=(Candidate("hccl"), *OFFER.candidates))
"""An offer of two candidates."""
OPEN_HERE: Final = (
    TransportReady("tcp", {"key": "1"}),
    TransportJoined("tcp"),
    Opened("tcp"),
)
"""What a client hears and finds until the candidate of OFFER is open."""
ANSWER: Final = Answer("tcp", {"key": "1"})
OPEN_THERE: Final = (ANSWER, TransportJoined("tcp"))
"""What a server hears and finds until that is so."""
BRIEF: Final = replace(OFFER, manifest=None)
"""What a server says to a client whose hello has the digest of its manifest."""
DESCRIPTION: Final = Description(IDENTITY, {"tied": "yes"})


def proven(message: auth.P, to: auth.Opening) -> auth.P:
    """A message as it is said under TOKEN to a client that has said `to`."""
    return auth.proven(message, TOKEN, to, SERVER_NONCE)


PROOF: Final = hello(SECURED)
"""What such a client says of itself: its hello."""
PROVEN_OFFER: Final = proven(OFFER, PROOF)
CURIOUS_PROOF: Final = hello(replace(CURIOUS, token=TOKEN))
PROVEN_DESCRIPTION: Final = proven(DESCRIPTION, CURIOUS_PROOF)
REFUSAL: Final = Reject("busy", "full", (Difference("model", "a", "b"),), 2.5)
DOUBT: Final = Reject("digest_mismatch", "segment 1")
OFFER_READY: Final = OfferReady(OFFER.candidates, DIGESTS)
DRAFT_DIGESTS: Final = ("draft-0", "draft-1", "draft-2")
READY: Final = (OFFER_READY, OfferReady((Candidate("tcp", {"port": "2"}),), DRAFT_DIGESTS))
"""What becomes of the order to offer the first of BOTH, or the second."""
REQUEST: Final = Request((0, 1, 2), 2)
ASK: Final = Ask((0, 1, 2))
RECEIVED: Final = Transferred(NBYTES)
VERIFIED: Final = Verified(3, NBYTES, ROOT)
