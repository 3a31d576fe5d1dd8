"""Two real links in a simulated world. Law: nothing happens unless a test lets it."""

import selectors
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias, cast

from netloader.config import Deadlines, Endpoint
from netloader.fsm.client import ClientSession, Wish
from netloader.fsm.effects import Settle, StartTransfer
from netloader.fsm.events import OfferRefused, TransferFailed
from netloader.fsm.manifest import plan
from netloader.fsm.messages import Lane, Purpose
from netloader.fsm.server import Offering, ServerSession
from netloader.fsm.session import Session, Step
from netloader.fsm.states import TERMINAL, State
from netloader.io.driver import Arrival, Link, Timed
from netloader.io.observe import Observer
from netloader.log import get_logger
from netloader.testing.fabric import Fabric, Hands, Holding, digest
from netloader.testing.laws import lawful, must
from netloader.testing.sides import OTHER, Role
from netloader.testing.wire import ALL, WINDOW, Pipe, Plug
from netloader.wire.acceptor import Decision, Refusal
from netloader.wire.frames import HEADER, Spoken, encode

Act: TypeAlias = Literal["connects", "hears", "writes", "works"]


class Choice(NamedTuple):
    """One thing that may happen next."""

    who: Role
    what: Act


class _Recorder(Observer):
    """Logs as ever, keeps the steps, and lets no mistake of ours pass."""

    def __init__(self, role: Role, world: "World") -> None:
        super().__init__(get_logger(role), Endpoint(OTHER[role], 1), {})
        self.steps: list[Step] = []
        self.troubles: list[Exception] = []
        self._world = world

    def saw(self, session: Session, step: Step) -> None:
        """Keep one step and check it."""
        super().saw(session, step)
        self.steps.append(step)
        lawful(session, step, self._world.now())

    def trouble(self, error: Exception) -> None:
        """Keep a mistake: the world raises it."""
        self.troubles.append(error)


class End:
    """One side of the world."""

    def __init__(self, role: Role, session: Session, world: "World", plug: Plug) -> None:
        self.role: Role = role
        self.session = session
        self.plug = plug
        self.hands = Hands(role, world.fabric)
        self.linked = False
        self._recorder = _Recorder(role, world)
        self._world = world
        self._arrival: Arrival | None = None
        self.link = Link(world, session, self.hands, self._recorder)

    @property
    def settled(self) -> bool:
        """Whether its session is over."""
        return self.session.state in TERMINAL or self.link.closed

    @property
    def steps(self) -> list[Step]:
        """Every step it took."""
        return self._recorder.steps

    def connect(self) -> None:
        """Its connection is up."""
        self.linked = True
        sock = cast("socket.socket", self.plug)
        if self.role == "client":
            self.link.connected(sock)
        else:
            patience_s = self.session.deadlines.handshake_s
            self._arrival = Arrival(self._world, sock, patience_s, self._decided)

    def timed(self) -> tuple[Timed, ...]:
        """All of it that may wait for a deadline."""
        return (self.link,) if self._arrival is None else (self._arrival, self.link)

    def check(self) -> None:
        """Raise what went wrong on this side."""
        for error in self._recorder.troubles:
            raise error
        held = self.link.connection.held_bytes
        must(held <= self.session.frame_limit + HEADER.size, "bounded", f"{held} bytes are held")

    def _decided(self, arrival: Arrival, decision: Decision) -> None:
        """A server's connection is now something; as a lane, nobody waits for it here."""
        if isinstance(decision, Lane):
            arrival.sock.close()
            self.link.close()
            return
        self.link.connected(arrival.sock, arrival.since, decision.data)
        if isinstance(decision, Refusal):
            self.link.handle(decision.event)


class World:
    """A client, a server, and all that may happen between them. It is the `Reactor` of both."""

    def __init__(
        self,
        wish: Wish,
        offering: Offering,
        contents: Sequence[bytes] | None = None,
        holding: Holding | None = None,
        deadlines: Deadlines | None = None,
        window: int = WINDOW,
        begun: float = 0.0,
    ) -> None:
        """`contents` is one token for each segment; `holding` is what earlier sources delivered."""
        count = len(plan(offering.manifest, offering.segment_bytes))
        self.holding = holding or Holding()
        tokens = contents or [b"segment %d" % i for i in range(count)]
        self.fabric = Fabric(offering, tokens, self.holding)
        self.pipes: dict[Role, Pipe] = {"client": Pipe(window), "server": Pipe(window)}
        """By who reads from it."""
        self.members: set[Timed] = set()
        self._now = begun
        self._inbox: deque[Callable[[], None]] = deque()
        self._watched: dict[Plug, tuple[int, Callable[[int], None]]] = {}
        limits = deadlines or Deadlines()
        asked = replace(wish, progress=self.holding.progress)
        self.client_session = ClientSession(asked, limits, "c" * 32, begun)
        self.server_session = ServerSession((offering,), limits, "session-1", "5" * 32, begun)
        there, back = self.pipes["server"], self.pipes["client"]
        self.client = End("client", self.client_session, self, Plug(back, there))
        self.server = End("server", self.server_session, self, Plug(there, back))
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
                if end.role == "client" or self.client.linked:
                    found.append(Choice(end.role, "connects"))
                continue
            mask, _ = self._watched.get(end.plug, (0, None))
            if mask & selectors.EVENT_READ and end.plug.inward.readable:
                found.append(Choice(end.role, "hears"))
            if mask & selectors.EVENT_WRITE and end.plug.outward.writable:
                found.append(Choice(end.role, "writes"))
            if end.hands.able:
                found.append(Choice(end.role, "works"))
        return found

    def do(self, choice: Choice, nbytes: int = ALL) -> None:
        """Let it happen; who hears is given at most `nbytes` bytes (1 or more)."""
        end = self.end(choice.who)
        if choice.what == "connects":
            end.connect()
        elif choice.what == "works":
            end.hands.work()
        else:
            end.plug.chunk = nbytes
            reads = choice.what == "hears"
            _, call = self._watched[end.plug]
            call(selectors.EVENT_READ if reads else selectors.EVENT_WRITE)
        self._settle_down()

    def wait(self, seconds: float) -> None:
        """Let virtual time pass; whose deadline comes by then is told."""
        self._pass(self._now + seconds)

    def wait_for_a_deadline(self) -> None:
        """Let virtual time pass until somebody's patience ends."""
        due = self.next_due()
        if due is not None:
            self._pass(max(self._now, due))

    def _pass(self, until: float) -> None:
        while (due := self.next_due()) is not None and due <= until:
            self._now = max(self._now, due)
            # Not in the order of the set: that is another one in every process.
            for member in (member for end in self.ends for member in end.timed()):
                when = member.next_timeout() if member in self.members else None
                if when is not None and when <= self._now:
                    member.handle_timeout(self._now)
            self._settle_down()
        self._now = until

    def next_due(self) -> float | None:
        """When somebody's patience ends next; None when nobody waits for anything."""
        return min((w for m in self.members if (w := m.next_timeout()) is not None), default=None)

    def end(self, who: Role) -> End:
        """One side."""
        return self.client if who == "client" else self.server

    def run(self, order: Sequence[int] = (0,), most: int = 100_000) -> None:
        """Let everything happen without a fault, until nothing is left or `most` things have.

        `order` says which of the choices to take, round and round, each modulo their number.
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

    def forge(self, who: Role, said: Spoken | bytes) -> None:
        """Put a message, or bytes, at the end of what `who` will hear."""
        self.pipes[who].bytes += said if isinstance(said, bytes) else encode(said)

    def fail(self, who: Role, event: TransferFailed | OfferRefused) -> None:
        """The work that `who` has at hand will end with this."""
        self.end(who).hands.fate = event

    # -- laws ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check the laws that concern more than one step; raises LawError."""
        for end in self.ends:
            end.check()
            settles = sum(isinstance(e, Settle) for step in end.steps for e in step.effects)
            must(settles == (end.session.verdict is not None), "one-verdict", "exactly one")
            starts = sum(isinstance(e, StartTransfer) for step in end.steps for e in step.effects)
            must(starts <= 1, "join-once", "one transfer in a session")
        client, server = self.client_session, self.server_session
        if client.wish.purpose is Purpose.DESCRIPTION or client.state is not State.DONE:
            return
        count = len(self.fabric.segments)
        received = tuple(digest(self.holding.contents.get(i, b"")) for i in range(count))
        must(received == self.fabric.published, "same-bytes", "what was published has arrived")
        must(server.sent, "agreement", "a client is only done after its server sent everything")

    def _settle_down(self) -> None:
        while self._inbox:
            self._inbox.popleft()()
        self.check()
