"""Both ends of a session in one process, without the protocol around them."""

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import nn

from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Segment, root_digest, segments_of
from netloader.fsm.messages import Candidate, Offer
from netloader.io.clock import monotonic
from netloader.io.store.digests import digest_of
from netloader.io.store.ledger import Ledger
from netloader.io.store.module import ModuleStore
from netloader.io.transports.base import ReceiverSetup, SenderSetup, Transport
from netloader.testing.conformance.calls import (
    MARGIN_S,
    PROMPT_S,
    SOON_S,
    Call,
    CallingThread,
    Observed,
    eventually,
    must,
)
from netloader.testing.conformance.stores import MIB, WatchedStore, contents

Model = Callable[[int], nn.Module]
"""Makes a model whose bytes depend on a seed."""
SESSION: Final = "0123456789abcdef0123456789abcdef"
LANES: Final = 2


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: a transport, for memory of a device.

    `where` is "module:attribute" when the transport can be imported by another process.
    """

    transport: Transport
    device: torch.device
    where: str
    stall_s: float


def uncounted(done: int, total: int) -> None:
    """Take a count of bytes, and do nothing."""
    del done, total


def lane_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


class Ends:
    """A sender and a receiver that are made, used and ended as a session does it.

    `hold_read` is which read of the server's weights, and `hold_write` which segment that arrives
    at the client, is held until `release`.
    """

    def __init__(
        self,
        subject: Subject,
        model: Model,
        *,
        segment_bytes: int = MIB,
        hold_read: int = 0,
        hold_write: int = 0,
        session: str = SESSION,
    ) -> None:
        self.subject = subject
        self.source, self.target = (model(seed).to(subject.device) for seed in (1, 100_001))
        self.giving = WatchedStore(ModuleStore.of(self.source), hold_read=hold_read)
        self.taking = WatchedStore(ModuleStore.of(self.target), hold_write=hold_write)
        self.segments = segments_of(self.giving.manifest, segment_bytes)
        plain = ModuleStore.of(self.source)
        digests = tuple(digest_of("blake3", plain.views(s)) for s in self.segments)
        self.ledger = Ledger(self.taking, uncounted)
        self.lease = self.ledger.lease(self._offer(session, segment_bytes, digests))
        self._threads = (CallingThread(), CallingThread())
        self._lanes: list[socket.socket] = []
        self._ended: set[str] = set()
        self.refuses_lanes = False
        self._attachments = [subject.transport.attach(s) for s in (self.giving, self.taking)]
        self.sender = self._attachments[0].sender(SenderSetup(session, subject.stall_s))
        self.receiver = self._attachments[1].receiver(
            ReceiverSetup(self.lease, session, subject.stall_s, self.dial, LANES)
        )

    def _offer(self, session: str, segment_bytes: int, digests: tuple[str, ...]) -> Offer:
        return Offer(
            session=session,
            identity=Identity({"model": "check"}),
            layout="raw",
            candidates=(Candidate(self.subject.transport.name),),
            digest_algorithm="blake3",
            manifest=self.giving.manifest,
            segment_bytes=segment_bytes,
            segment_digests=digests,
            root=root_digest(digests),
        )

    def dial(self, index: int) -> socket.socket:
        """Open lane `index` between the two ends, unless they are refused."""
        if self.refuses_lanes:
            raise ConnectionRefusedError(f"lane {index}")
        near, far = lane_pair()
        self._lanes += (near, far)
        self.sender.attach(index, far)
        return near

    # -- calls -----------------------------------------------------------------------------------

    def at_server(self, name: str, function: Callable[[], Any]) -> Call:
        """Have the server's worker thread make a call."""
        return self._threads[0].call(f"Sender.{name}", function)

    def at_client(self, name: str, function: Callable[[], Any]) -> Call:
        """Have the client's worker thread make a call."""
        return self._threads[1].call(f"Receiver.{name}", function)

    def rendezvous(self) -> Mapping[str, str]:
        """What the sender has to say."""
        told: Mapping[str, str] = self.at_server("rendezvous", self.sender.rendezvous).result()
        return told

    def open(self) -> None:
        """Open the receiver with what the sender says, and have both do what takes both."""
        for call in self.join(self.answer()):
            call.result()

    def answer(self) -> Mapping[str, str]:
        """Open the receiver with what the sender says; returns its answer."""
        told = self.rendezvous()
        call = self.at_client("open", lambda: self.receiver.open(told))
        answer: Mapping[str, str] = call.result()
        return answer

    def join(self, answer: Mapping[str, str]) -> tuple[Call, Call]:
        """Start what takes both ends: the server is told an answer, the client joins."""
        told = self.at_server("answered", lambda: self.sender.answered(answer))
        return told, self.at_client("join", self.receiver.join)

    def send(self, segments: Sequence[Segment] | None = None) -> Call:
        """Start the sender on some segments, or on all."""
        chosen = self.segments if segments is None else segments
        return self.at_server("run", lambda: self.sender.run(chosen, LANES))

    def receive(self, segments: Sequence[Segment] | None = None) -> Call:
        """Start the receiver on some segments, or on all."""
        chosen = self.segments if segments is None else segments
        return self.at_client("run", lambda: self.receiver.run(chosen))

    def move(self, segments: Sequence[Segment] | None = None) -> None:
        """Move some segments, or all, and see that both ends counted their bytes."""
        chosen = self.segments if segments is None else segments
        sent, received = self.send(chosen), self.receive(chosen)
        results = [self._first_to_fail(sent, received), received.result(), sent.result()]
        size = sum(segment.nbytes for segment in chosen)
        for end, counted in zip(("Receiver", "Sender"), results[1:], strict=True):
            must(counted == size, f"{end}.run returned {counted!r} for {size} bytes")

    @staticmethod
    def _first_to_fail(*calls: Call) -> None:
        """Raise what the first of two calls saw, when it ends: the other one may wait for long."""
        left, limit = [*calls], monotonic() + SOON_S
        while left and monotonic() < limit:
            for call in [call for call in left if call.ended(0.01)]:
                left.remove(call)
                call.result()

    def check_arrived(self) -> None:
        """See that the target holds what the source holds, and that all of it was verified."""
        must(contents(self.target) == contents(self.source), "other bytes are in the target")
        verified = self.ledger.progress.verified
        must(len(verified) == len(self.segments), f"{len(verified)} segments were verified")

    def hold(self, call: Call) -> None:
        """Wait until one of the gates holds a thread; `call` is what must bring it there.

        Raises:
            Observed: the call ended before, or moved too little for too long.
        """
        gates = (self.giving.reading, self.taking.writing)
        eventually(lambda: call.ended(0) or any(g.reached.is_set() for g in gates), SOON_S)
        if not any(gate.reached.is_set() for gate in gates):
            call.result(0)
            raise Observed(f"{call.name} returned early")

    def release(self) -> None:
        """Release the threads that are held."""
        self.giving.release()
        self.taking.release()

    # -- the end ---------------------------------------------------------------------------------

    def abort(self, name: str) -> None:
        """Abort the sender or the receiver, from this thread.

        Raises:
            Observed: it raised, or blocked.
        """
        begun = monotonic()
        end = self.sender if name == "sender" else self.receiver
        try:
            end.abort()
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise Observed(f"{name}.abort raised {what}") from error
        took = monotonic() - begun
        must(took < PROMPT_S + MARGIN_S, f"{name}.abort blocked for {took:.1f} s")

    def end(self, name: str) -> None:
        """Abort the sender or the receiver, and end it on its thread."""
        self.abort(name)
        self._ending(name).result()

    def finish(self) -> None:
        """End both, and detach."""
        self.release()
        for name in ("receiver", "sender"):
            if name not in self._ended:
                self.end(name)
        self.ledger.release(self.lease)
        attachments, self._attachments = self._attachments, []
        for attachment in attachments:
            self.at_server("attachment.detach", attachment.detach).result()
        open_lanes = sum(lane.fileno() >= 0 for lane in self._lanes)
        must(not open_lanes, f"{open_lanes} lanes are open after the end")

    def _ending(self, name: str) -> Call:
        self._ended.add(name)
        if name == "sender":
            return self.at_server("end", self.sender.end)
        return self.at_client("end", self.receiver.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Clear away what a check has left, in whatever state it is."""
        self.release()
        for name, end in (("receiver", self.receiver), ("sender", self.sender)):
            if name not in self._ended:
                with contextlib.suppress(Exception):
                    end.abort()
                self._ending(name).ended(PROMPT_S)
        for attachment in self._attachments:
            with contextlib.suppress(Exception):
                attachment.detach()
        for thread in self._threads:
            thread.stop()
        for lane in self._lanes:
            lane.close()
