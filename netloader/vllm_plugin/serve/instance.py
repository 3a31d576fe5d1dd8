"""One port for all ranks of an instance on this host: LISTEN_PORT itself.

Each rank has a port of its own, LISTEN_PORT + rank. Each leaves a note for the others on its host
(`io.host_notes`): its port, and the part of the model that it has, from before it loads that. So
the rank that a client asks can send it on to the right port. LISTEN_PORT is rank 0's own. Where the
host has no rank 0, as further hosts of an instance have none, the first rank that gets the port
listens there too; when its process ends, another one takes its place, and rank 0 gets it when it
comes.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from netloader.errors import LocalProtocolError, cause
from netloader.fsm.identity import Identity
from netloader.fsm.terms import Sibling
from netloader.io.clock import monotonic
from netloader.io.host_notes import HostNotes
from netloader.io.server import Server
from netloader.log import Logger, emit
from netloader.vllm_plugin.identity.compare import ASKED
from netloader.vllm_plugin.serve.harmless import harmless

LOOK_S: Final = 1.0
"""Seconds between two looks at the notes of the others."""


class _Rank(msgspec.Struct, frozen=True):
    """What a rank says of itself."""

    host: str
    rank: int
    port: int = 0
    """0: it does not listen yet."""
    also: bool = False
    """Whether it listens at LISTEN_PORT, too."""
    models: tuple[dict[str, str], ...] = ()


def part_of(identity: Identity) -> dict[str, str]:
    """The fields by which a client of an instance is sent to a rank."""
    return {name: identity.hard[name] for name in ASKED if name in identity.hard}


class Instance:
    """The ranks of one LISTEN_PORT, for one of them. `siblings` is safe to call from any thread.

    `host` is what all of them listen at. A thread looks at the others from the first `say` until
    `close`; nothing else here waits for it, so a garbage collector may call `forget` and `close`.
    """

    def __init__(self, port: int, host: str, rank: int, logger: Logger) -> None:
        self._given = (port, host, rank, logger)
        self._member: _Member | None = None

    def siblings(self) -> tuple[Sibling, ...]:
        """What the other ranks of this host have, or load, as of the last look."""
        member = self._member
        return () if member is None else member.siblings

    def say(self, role: str, part: Mapping[str, str]) -> None:
        """Say that this rank has a model, or loads it."""
        self._begun().inbox.put(lambda member: member.say(role, part))

    def listens(self, server: Server) -> None:
        """Say where this rank listens."""
        self._begun().inbox.put(lambda member: member.listens(server))

    def _begun(self) -> "_Member":
        if self._member is None:
            self._member = member = _Member(*self._given)
            thread = threading.Thread(target=member.run, name="netloader-instance", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the process may have no more threads
                member.fail(str(error))
        return self._member

    def forget(self, role: str) -> None:
        """Say that this rank does not have a model any more."""
        if self._member is not None:
            self._member.inbox.put(lambda member: member.forget(role))

    def close(self) -> None:
        """Say nothing any more. The server that was named frees its ports itself."""
        member, self._member = self._member, None
        if member is not None:
            member.inbox.put(None)

    def left(self, timeout_s: float) -> bool:
        """Whether another rank, which had LISTEN_PORT in the place of rank 0, leaves it in time."""
        member, end, had = self._member, monotonic() + timeout_s, False
        if member is not None:
            member.looked.wait(timeout_s)
        while member is not None and member.is_lent and monotonic() < end:
            had = True
            threading.Event().wait(0.1)
        return had and member is not None and not member.is_lent


class _Member:
    """What one rank knows and says, on the thread that calls `run`.

    Other threads put calls into `inbox`, and read `siblings`, `looked` and `is_lent`.
    """

    def __init__(self, port: int, host: str, rank: int, logger: Logger) -> None:
        self.inbox: queue.SimpleQueue[Callable[[_Member], None] | None] = queue.SimpleQueue()
        """What the thread is to do next; None: end."""
        self.siblings: tuple[Sibling, ...] = ()
        self.looked = threading.Event()
        """Set when it is known what the others say, or that this cannot be known."""
        self.is_lent = False
        """Whether another rank listens at LISTEN_PORT that leaves it to rank 0."""
        self._port = port
        self._host = host
        self._rank = rank
        self._logger = logger
        self._models: dict[str, dict[str, str]] = {}
        self._server: Server | None = None
        self._leave: Callable[[], None] | None = None
        """Ends listening at LISTEN_PORT beside the rank's own port."""
        self._said = b""

    def say(self, role: str, part: Mapping[str, str]) -> None:
        """As `Instance.say`."""
        self._models[role] = dict(part)

    def listens(self, server: Server) -> None:
        """As `Instance.listens`."""
        self._server = server

    def forget(self, role: str) -> None:
        """As `Instance.forget`."""
        self._models.pop(role, None)

    def run(self) -> None:
        """Carry out what comes in, and look at the others every LOOK_S seconds."""
        try:
            notes = HostNotes(f"rank-{_network()}-{self._port}-")
        except OSError as error:
            self.fail(cause(error))
            return
        while True:
            with harmless():
                self._step(notes)
            self.looked.set()
            try:
                call = self.inbox.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            if call is None:
                break
            call(self)
        notes.take_back()

    def fail(self, why: str) -> None:
        """Log why the others cannot be found."""
        emit(self._logger, "netloader.instance.failed", {"netloader.detail": why})
        self.looked.set()

    def _step(self, notes: HostNotes) -> None:
        found = [_parsed(data) for data in notes.others()]
        others = [said for said in found if said is not None and said.host == self._host]
        self.siblings = tuple(Sibling(part, o.port) for o in others for part in o.models)
        self.is_lent = any(other.also for other in others)
        self._share(self._rank == 0 or any(other.rank == 0 for other in others))
        own = 0 if self._server is None else self._server.endpoint.port
        models, also = tuple(self._models.values()), self._leave is not None
        said = msgspec.json.encode(_Rank(self._host, self._rank, own, also, models))
        if said != self._said:
            with contextlib.suppress(OSError):  # a full disk: tried again
                notes.put(said)
                self._said = said

    def _share(self, owned: bool) -> None:  # noqa: FBT001 - a fact, not a choice
        """Listen at LISTEN_PORT unless it is owned by rank 0, to which it is left."""
        if owned and self._leave is not None:
            self._leave()
            self._leave = None
        elif not owned and self._leave is None and self._server is not None:
            with contextlib.suppress(OSError, LocalProtocolError):  # another has it, or it closes
                self._leave = self._server.listen_also(self._port)


def _parsed(data: bytes) -> _Rank | None:
    """What a note says; None for what is none."""
    try:
        said = msgspec.json.decode(data, type=_Rank)
    except msgspec.MsgspecError:
        return None
    return said if 0 <= said.port <= 65535 and all(said.models) else None


def _network() -> int:
    """A number for the network namespace: ports of another one are other ports."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116 - what the link leads to
    return 0
