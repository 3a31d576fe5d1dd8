"""Weights in a folder of this host as one more source: this process serves them to itself.

So a folder is checked as any peer is, by the same machines: its identity against what the client
expects, each segment against the digest in its card, and a fetch shares its segments out between
the folder and peers by what each has shown to bring. The server listens on loopback, as long as the
load needs it, and asks for a token that no other process has: an operator may guard weights by
TLS alone, and any process of the host can connect to loopback.

The card is in the same folder as the bytes, so one who can write there can change both. `confirmed`
therefore leaves out a folder that holds other bytes than a peer that answers.
"""

import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from netloader.config import Endpoint, FolderEndpoint, Secret
from netloader.errors import WeightsError
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description, Status
from netloader.fsm.reasons import Reason
from netloader.io.describe import ask_status
from netloader.io.options import ClientOptions
from netloader.io.outcome import Attempt
from netloader.io.publishing import ServerOptions, publish_verified
from netloader.io.server import Server, listen
from netloader.io.store.parts import Part
from netloader.log import emit

LOOPBACK: Final = "127.0.0.1"
TRANSPORTS: Final = ("shm", "tcp")
"""Over which a folder is read, best first."""
TOKEN_BYTES: Final = 32
_UNKNOWN: Final = Manifest(())
AGAIN: Final = "copy or save the weights again"


def transports_to(device_type: str) -> tuple[str, ...]:
    """How a client reads a folder into memory of a type of device, whatever it says to peers."""
    return TRANSPORTS if device_type == "cpu" else ("tcp",)


class OwnFolder:
    """One part of a folder, offered to this process until `close`. Safe to use from any thread.

    `options` are those of its server, but for what the part decides, and who may connect.

    Raises:
        WeightsError: the part cannot be a source, and what would help.
        OSError: loopback cannot be listened on.
    """

    def __init__(self, part: Part, options: ServerOptions) -> None:
        card = part.card
        if card is None:
            raise WeightsError(f"there is no netloader.json; {AGAIN}")
        proof = part.proof
        if proof is None:
            raise WeightsError(f"its netloader.json has no digests that can be used here; {AGAIN}")
        token = Secret(secrets.token_hex(TOKEN_BYTES))
        told = replace(
            options,
            transports=TRANSPORTS,
            layouts=(card.layout,),
            facts=dict(card.facts),
            token=token,
            tls=None,
            rails=(),
            allow=(LOOPBACK,),
        )
        published = publish_verified(part.store, part.identity, told, proof)
        self._server: Server = listen(LOOPBACK, 0, told)
        self._server.offer(published)
        port = self._server.endpoint.port
        self.folder = part.folder
        self.damaged = False
        """Whether `heard` has been told of bytes that do not match the card."""
        self.card = card
        self.endpoint = FolderEndpoint(LOOPBACK, port, str(part.folder), token)

    def heard(self, attempts: Iterable[Attempt]) -> None:
        """Note whether a session, of some that are over, got bytes that do not match the card."""
        self.damaged |= any(
            attempt.source == self.endpoint and attempt.reason is Reason.DIGEST_MISMATCH
            for attempt in attempts
        )

    def close(self) -> None:
        """Serve it no more. Idempotent."""
        self._server.close()


def confirmed(
    sources: tuple[Endpoint, ...], folders: tuple[OwnFolder, ...], options: ClientOptions
) -> tuple[Endpoint, ...]:
    """The sources, in their order, without folders that hold other bytes than the first of them.

    That is the one that has described itself: a peer, if any has answered. Without an answer now,
    nothing is left out. Blocks for one question to each peer.
    """
    if not folders or not sources or isinstance(sources[0], FolderEndpoint):
        return sources
    unlike: set[Endpoint] = set()
    for folder in folders:
        said = ask_status(sources[0], folder.card.identity.kind, _UNKNOWN, options)
        if isinstance(said, Description) and (why := _differs(folder.card.status, said.status)):
            unlike.add(folder.endpoint)
            detail = f"{folder.endpoint}: {why}; the peer {sources[0]} has the last word"
            fields = {"netloader.source": str(sources[0]), "netloader.detail": detail}
            emit(options.logger, "netloader.folder.refused", fields)
    return tuple(source for source in sources if source not in unlike)


def _differs(ours: Status | None, theirs: Status | None) -> str:
    """Why a folder is not known to hold the bytes of a peer; empty if it is."""
    if ours is None or theirs is None or not theirs.root:
        return "the peer does not say the root of its weights now"
    cut = (ours.digest_algorithm, ours.segment_bytes)
    if cut != (theirs.digest_algorithm, theirs.segment_bytes):
        mine = f"{cut[0]} of segments of {cut[1]} bytes"
        other = f"{theirs.digest_algorithm} of segments of {theirs.segment_bytes}"
        return f"its digests are {mine}, those of the peer {other}, which cannot be compared"
    if ours.root != theirs.root:
        return f"its bytes have the root {ours.root[:16]}, those of the peer {theirs.root[:16]}"
    return ""
