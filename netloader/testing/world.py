"""Two drivers in a simulated world. Nothing happens unless a test chooses it."""

import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterator, MutableSet, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol, TypeAlias, cast

from netloader.config import Deadlines
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import Settle, StartTransfer
from netloader.fsm.events import Event, MoreAvailable, OfferRefused, TransferFailed
from netloader.fsm.manifest import segments_of
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import Session, Step
from netloader.fsm.states import TERMINAL, State
from netloader.fsm.terms import CatalogEntry, FetchSpec
from netloader.testing.fabric import Fabric, Hands, Holding, digest
from netloader.testing.laws import lawful, must
from netloader.testing.sides import Side
from netloader.testing.wire import ALL, WINDOW, Pipe, Plug
from netloader.wire.connection import Connection
from netloader.wire.frames import HEADER, Spoken, encode

Act: TypeAlias = Literal["connects", "hears", "writes", "works", "learns"]


class Choice(NamedTuple):
    """One thing that may happen next."""

    who: Side
    what: Act


class Timed(Protocol):
    """A member of the world that has deadlines."""

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`, in seconds of the world's clock; None for never."""

    def handle_timeout(self, now: float) -> None:
        """Act on the deadlines that have passed."""


class Driver(Protocol):
    """What carries one connection. It lives in a world as it would in an event loop.

    It adds itself to `world.members` to be called at a time, has sockets looked at by
    `world.watch`, and has calls from other threads made by `world.post`.
    """

    @property
    def closed(self) -> bool:
        """Whether it has closed its socket, and waits for nothing."""

    def connected(self, sock: socket.socket) -> None:
        """Its connection is up: it is to be non-blocking, and to be closed in the end."""

    def handle(self, event: Event) -> None:
        """Take an event of its own side, such as `ConnectFailed` or `StopRequested`."""


Drive: TypeAlias = Callable[["World", Connection, Hands], Driver]
"""Makes the driver of one side, for this connection. The hands carry out its tasks."""


class _InOrder(MutableSet[Timed]):
    """A set that is iterated in the order of insertion.

    The order of a `set` depends on addresses, so a run could not be repeated.
    """

    def __init__(self) -> None:
        self._members: dict[Timed, None] = {}

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def __iter__(self) -> Iterator[Timed]:
        return iter(tuple(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def add(self, value: Timed) -> None:
        """Append a member, unless it is in the set."""
        self._members.setdefault(value)

    def discard(self, value: Timed) -> None:
        """Remove a member, if it is in the set."""
        self._members.pop(value, None)


class End:
    """One side of the world."""

    def __init__(
        self, side: Side, session: Session, world: "World", plug: Plug, drive: Drive
    ) -> None:
        self.side: Side = side
        self.session = session
        self.plug = plug
        self.hands = Hands(side, world.fabric)
        self.linked = False
        self.steps: list[Step] = []
        """Every step it took."""
        self._world = world
        self._connection = Connection(session, self._saw)
        self.link = drive(world, self._connection, self.hands)

    @property
    def settled(self) -> bool:
        """Whether its session is over."""
        return self.session.state in TERMINAL or self.link.closed

    def connect(self) -> None:
        """Its connection is up."""
        self.linked = True
        self.link.connected(cast("socket.socket", self.plug))

    def check(self) -> None:
        """Raise what went wrong on this side."""
        for error in getattr(self.link, "troubles", ()):
            raise error
        held = self._connection.held_bytes
        must(held <= self.session.frame_limit + HEADER.size, "bounded", f"{held} bytes are held")

    def _saw(self, session: Session, step: Step) -> None:
        """Keep one step and check it."""
        self.steps.append(step)
        lawful(session, step, self._world.now())


class World:
    """A client, a server, and all that may happen between them. It is the event loop of both."""

    def __init__(
        self,
        spec: FetchSpec,
        entry: CatalogEntry,
        contents: Sequence[bytes] | None = None,
        holding: Holding | None = None,
        deadlines: Deadlines | None = None,
        window: int = WINDOW,
        begun: float = 0.0,
        drive: Drive | None = None,
    ) -> None:
        """`contents` is one token for each segment; `holding` is what earlier sources delivered.

        `drive` makes the driver of each side; None: the one of `netloader.io`.
        """
        count = len(segments_of(entry.manifest, entry.segment_bytes))
        self.holding = holding or Holding()
        tokens = contents or [b"segment %d" % i for i in range(count)]
        self.fabric = Fabric(entry, tokens, self.holding)
        self.pipes: dict[Side, Pipe] = {"client": Pipe(window), "server": Pipe(window)}
        """By the side that reads from it."""
        self.members: MutableSet[Timed] = _InOrder()
        self._now = begun
        self._inbox: deque[Callable[[], None]] = deque()
        self._watched: dict[Plug, tuple[int, Callable[[int], None]]] = {}
        limits = deadlines or Deadlines()
        asked = replace(spec, progress=self.holding.progress)
        self.client_session = ClientSession(asked, limits, "c" * 32, begun)
        self.server_session = ServerSession((entry,), limits, "session-1", "5" * 32, begun)
        there, back = self.pipes["server"], self.pipes["client"]
        drive = drive or _drive()
        self.client = End("client", self.client_session, self, Plug(back, there), drive)
        self.server = End("server", self.server_session, self, Plug(there, back), drive)
        self.ends: tuple[End, End] = (self.client, self.server)

    # -- as a reactor ----------------------------------------------------------------------------

    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` before the present `do` returns."""
        self._inbox.append(call)

    def watch(self, sock: socket.socket, mask: int, call: Callable[[int], None]) -> None:
        """Remember what a link waits for."""
        plug = cast("Plug", sock)
        self._watched.pop(plug, None)
        if mask:
            self._watched[plug] = (mask, call)

    # -- what can happen -------------------------------------------------------------------------

    def choices(self) -> list[Choice]:
        """Everything that can happen now without a fault and without waiting for a deadline."""
        found: list[Choice] = []
        for end in self.ends:
            if not end.linked:
                if end.side == "client" or self.client.linked:
                    found.append(Choice(end.side, "connects"))
                continue
            mask, _ = self._watched.get(end.plug, (0, None))
            if mask & selectors.EVENT_READ and end.plug.inward.readable:
                found.append(Choice(end.side, "hears"))
            if mask & selectors.EVENT_WRITE and end.plug.outward.writable:
                found.append(Choice(end.side, "writes"))
            if end.hands.able:
                found.append(Choice(end.side, "works"))
        if self._coming() and self.server_session.offered:
            found.append(Choice("server", "learns"))
        return found

    def do(self, choice: Choice, nbytes: int = ALL) -> None:
        """Make a choice happen; a side that reads gets at most `nbytes` bytes (1 or more)."""
        end = self.end(choice.who)
        if choice.what == "connects":
            end.connect()
        elif choice.what == "works":
            end.hands.work()
        elif choice.what == "learns":
            end.link.handle(MoreAvailable(frozenset(self._coming()[:1])))
        else:
            end.plug.chunk = nbytes
            reads = choice.what == "hears"
            _, call = self._watched[end.plug]
            call(selectors.EVENT_READ if reads else selectors.EVENT_WRITE)
        self._settle_down()

    def _coming(self) -> list[int]:
        """Segments that a server with some of them will have later."""
        if self.fabric.available is None or self.server_session.state in TERMINAL:
            return []
        return sorted(set(range(len(self.fabric.segments))) - self.server_session.available)

    def wait(self, seconds: float) -> None:
        """Advance virtual time, and run the deadlines that pass."""
        self._pass(self._now + seconds)

    def wait_for_a_deadline(self) -> None:
        """Advance virtual time to the next deadline of either side."""
        due = self.next_due()
        if due is not None:
            self._pass(max(self._now, due))

    def _pass(self, until: float) -> None:
        while (due := self.next_due()) is not None and due <= until:
            self._now = max(self._now, due)
            for member in self.members:
                when = member.next_timeout() if member in self.members else None
                if when is not None and when <= self._now:
                    member.handle_timeout(self._now)
            self._settle_down()
        self._now = until

    def next_due(self) -> float | None:
        """When the next deadline of either side passes; None when there is none."""
        return min((w for m in self.members if (w := m.next_timeout()) is not None), default=None)

    def end(self, who: Side) -> End:
        """One side."""
        return self.client if who == "client" else self.server

    def run(self, order: Sequence[int] = (0,), most: int = 100_000) -> None:
        """Make choices happen, without a fault, until none is left or `most` were made.

        `order` gives the indices of the choices to take, cyclically, modulo their number.
        """
        for turn in range(most):
            choices = self.choices()
            if not choices:
                return
            self.do(choices[order[turn % len(order)] % len(choices)])

    # -- what can go wrong -----------------------------------------------------------------------

    def reset(self) -> None:
        """The connection breaks in both directions."""
        for pipe in self.pipes.values():
            pipe.snap()

    def forge(self, who: Side, said: Spoken | bytes) -> None:
        """Append a message, or bytes, to what `who` will read."""
        self.pipes[who].bytes += said if isinstance(said, bytes) else encode(said)

    def fail(self, who: Side, event: TransferFailed | OfferRefused) -> None:
        """Make the current order of `who` end with this event."""
        self.end(who).hands.fate = event

    # -- laws ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check the laws that concern more than one step; raises LawError."""
        for end in self.ends:
            end.check()
            settles = sum(isinstance(e, Settle) for step in end.steps for e in step.effects)
            must(settles == (end.session.verdict is not None), "one-verdict", "exactly one")
            starts = [e for step in end.steps for e in step.effects if isinstance(e, StartTransfer)]
            moved = [segment for start in starts for segment in start.segments]
            must(len(moved) == len(set(moved)), "once-each", "no segment twice in a session")
        client, server = self.client_session, self.server_session
        if client.spec.purpose.is_question or client.state is not State.DONE:
            return
        count = len(self.fabric.segments)
        received = tuple(digest(self.holding.contents.get(i, b"")) for i in range(count))
        must(received == self.fabric.published, "same-bytes", "what was published has arrived")
        sent = server.sent or not client.requests.count
        must(sent, "agreement", "a client is only done after its server sent everything")

    def _settle_down(self) -> None:
        while self._inbox:
            self._inbox.popleft()()
        self.check()


def _drive() -> Drive:
    from netloader.testing.links import Linked  # it loads torch, and other drivers do without

    return Linked
