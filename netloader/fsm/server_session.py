"""The state of a server's session. Only the actions of `server` change it."""

from typing import ClassVar

from netloader.config import Deadlines, Secret
from netloader.fsm.manifest import segment_count
from netloader.fsm.messages import Answer, Hello, Start
from netloader.fsm.session import FRAME_BEFORE_TRUST, Session
from netloader.fsm.states import State
from netloader.fsm.terms import CatalogEntry, Sibling


class ServerSession(Session):
    """The session with one client. The caller makes id and `nonce`, and knows the `siblings`.

    `token` is the one that the client has proven, if the entry has tokens.
    """

    __slots__ = (
        "available",
        "candidates",
        "entries",
        "held",
        "hello",
        "joining",
        "nonce",
        "offered",
        "opened",
        "segment_digests",
        "session_id",
        "siblings",
        "start",
        "token",
    )

    side: ClassVar[str] = "server"

    def __init__(
        self,
        entries: tuple[CatalogEntry, ...],
        deadlines: Deadlines,
        session_id: str,
        nonce: str,
        now: float,
        siblings: tuple[Sibling, ...] = (),
    ) -> None:
        self.entries = entries
        self.siblings = siblings
        self.session_id = session_id
        self.nonce = nonce
        self.start: Start | None = None
        self.hello: Hello | None = None
        self.token: Secret | None = None
        self.offered = False
        self.candidates: tuple[str, ...] = ()
        """The transports of the offer, in order."""
        self.held: Answer | None = None
        """One that waits until an earlier candidate is not being joined any more."""
        self.joining = False
        """Whether a candidate is being joined."""
        self.opened = False
        """Whether the client was told that the candidate at hand is open here."""
        self.available: frozenset[int] = frozenset()
        """Segments that were announced to the client."""
        self.segment_digests: tuple[str, ...] = ()
        super().__init__(deadlines, now)

    @property
    def name(self) -> str:
        """The id this side chose."""
        return self.session_id

    def chosen(self, hello: Hello) -> int:
        """The index of the entry with the role and the part of a hello.

        The first with its role if none has its part, and 0 if none has its role, to refuse by that.
        """
        asked = hello.identity
        of_role = [i for i, entry in enumerate(self.entries) if entry.role == asked.role]
        of_part = [i for i in of_role if not asked.crosses(self.entries[i].identity)]
        return next(iter(of_part or of_role), 0)

    def elsewhere(self, hello: Hello) -> tuple[Sibling, ...]:
        """The models of other servers on this host that a hello asks for."""
        return tuple(each for each in self.siblings if each.suits(hello.identity))

    @property
    def entry(self) -> CatalogEntry:
        """The entry that the client chose; the first one before its hello."""
        return self.entries[0 if self.hello is None else self.chosen(self.hello)]

    @property
    def later_candidates(self) -> tuple[str, ...]:
        """The candidates after the one at hand; all, while there is none."""
        names = self.candidates
        return names[names.index(self.transport) + 1 :] if self.transport else names

    @property
    def sent(self) -> bool:
        """Whether there was a request, and all that was asked for so far has been sent."""
        return self.requests.count > 0 and self.request is None

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of all segments, and of a full one."""
        return self.entry.manifest.nbytes, self.entry.segment_bytes

    @property
    def frame_limit(self) -> int:
        """64 KiB; after the handshake also the bytes of a request for every segment.

        No more than that, because decoding a frame holds the interpreter lock.
        """
        if self.state not in (State.VALIDATE, State.TRANSFER):
            return FRAME_BEFORE_TRUST
        count = segment_count(self.entry.manifest.nbytes, self.entry.segment_bytes)
        return FRAME_BEFORE_TRUST + count * len(f"{count},")
