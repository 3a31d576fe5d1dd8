"""Transports with one mistake each: the one of docs/embed/transport.md, and what goes wrong."""

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from netloader.fsm.manifest import Extent, Segment, segments_of
from netloader.fsm.reasons import Reason
from netloader.io.transports import TransferError
from tests.conformance.plain import Plain, PlainAttachment, PlainReceiver, PlainSender

SHARED: Final = Path("/dev/shm")
FOREVER: Final = threading.Event()
"""Nothing sets it but the end of a test."""


def broken(sender: type = PlainSender, receiver: type = PlainReceiver) -> Any:
    """The plain transport with other ends."""

    class Attachment(PlainAttachment):  # type: ignore[misc]  # from a page
        def sender(self, setup: Any) -> Any:
            return sender(self.store, setup)

        def receiver(self, setup: Any) -> Any:
            return receiver(setup)

    class Broken(Plain):  # type: ignore[misc]
        def attach(self, store: Any) -> Any:
            return Attachment(store)

    return Broken()


class Sender(PlainSender):  # type: ignore[misc]
    """The base of the senders below."""

    def __init__(self, store: Any, setup: Any) -> None:
        super().__init__(store, setup)
        del self.abort, self.end  # so that methods may replace them

    def abort(self) -> None:
        self.lane.abort()

    def end(self) -> None:
        self.lane.end()


class Receiver(PlainReceiver):  # type: ignore[misc]
    """The base of the receivers below."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        del self.abort, self.end

    def abort(self) -> None:
        self.lane.abort()

    def end(self) -> None:
        self.lane.end()


# -- bytes ---------------------------------------------------------------------------------------


class NeedsSegments(Sender):
    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        _ = segments[0]
        return int(super().run(segments, lanes))


class DropsLastByte(Sender):
    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        data = b"".join(bytes(view) for s in segments for view in self.store.views(s))
        self.lane.take().sendall(data[:-1])
        return len(data)


class SwapsSegments(Sender):
    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        return int(super().run([*segments[1:2], *segments[:1], *segments[2:]], lanes))


class CountsNothing(Receiver):
    def run(self, segments: Sequence[Segment]) -> int:
        super().run(segments)
        return 0


class KeepsItApart(Receiver):
    """Digests what has come, and does not put it where it belongs."""

    def run(self, segments: Sequence[Segment]) -> int:
        sock = self.lane.take()
        for segment in segments:
            writer, apart = self.setup.lease.expect(segment), bytearray(segment.nbytes)
            self.fill(sock, memoryview(apart))
            writer.update(memoryview(apart))
        return sum(segment.nbytes for segment in segments)


class SendsAll(Sender):
    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        return int(super().run(segments_of(self.store.manifest, 1 << 20), lanes))


class ReceivesAll(Receiver):
    def run(self, segments: Sequence[Segment]) -> int:
        return int(super().run(self.setup.lease.segments))


class EndsItself(Sender):
    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        count = int(super().run(segments, lanes))
        self.end()
        return count


class Alone(Sender):
    """Says that there is no room by an error that is a bug."""

    using: Final[set[str]] = set()

    def __init__(self, store: Any, setup: Any) -> None:
        super().__init__(store, setup)
        if self.using:
            raise RuntimeError("one at a time")
        self.using.add(setup.session)

    def end(self) -> None:
        self.using.clear()
        super().end()


class Unverified(Receiver):
    def run(self, segments: Sequence[Segment]) -> int:
        sock = self.lane.take()
        for segment in segments:
            for view in self.setup.lease.expect(segment).views():
                self.fill(sock, view)
        return sum(segment.nbytes for segment in segments)


class SpeaksNumbers(Sender):
    def rendezvous(self) -> Mapping[str, Any]:
        return {"port": 5}


# -- waits ---------------------------------------------------------------------------------------


class DeafSender(Sender):
    """Does not heed an abort."""

    def abort(self) -> None:
        pass


class DeafReceiver(Receiver):
    """Does not heed an abort."""

    def abort(self) -> None:
        pass


class AbortsOnce(Sender):
    """Cannot be aborted twice."""

    def abort(self) -> None:
        if self.lane.aborted:
            raise RuntimeError("aborted already")
        super().abort()


class AbortBlocks(Receiver):
    def abort(self) -> None:
        super().abort()
        FOREVER.wait(3)


class PatientSender(Sender):
    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        self.lane.take().settimeout(None)
        return int(super().run(segments, lanes))


class PatientReceiver(Receiver):
    def run(self, segments: Sequence[Segment]) -> int:
        self.lane.take().settimeout(None)
        return int(super().run(segments))


class RawErrors(Receiver):
    """Raises what the socket raised."""

    def run(self, segments: Sequence[Segment]) -> int:
        sock = self.lane.take()
        for segment in segments:
            writer = self.setup.lease.expect(segment)
            for view in writer.views():
                if sock.recv_into(view, len(view), socket.MSG_WAITALL) < len(view):
                    raise ConnectionResetError
                writer.update(view)
        return sum(segment.nbytes for segment in segments)


class WaitsForEver(Sender):
    """When the connection fails it waits for another one, whatever happens."""

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        try:
            return int(super().run(segments, lanes))
        except TransferError:
            FOREVER.wait()
            raise


class ReceivesForEver(Receiver):
    """The same at the client."""

    def run(self, segments: Sequence[Segment]) -> int:
        try:
            return int(super().run(segments))
        except TransferError:
            FOREVER.wait()
            raise


class NeedsRun(Sender):
    def end(self) -> None:
        self.lane.sock.close()


class AbortNeedsLane(Receiver):
    """Ends, and cannot be aborted any more."""

    def end(self) -> None:
        super().end()
        del self.lane

    def abort(self) -> None:
        self.lane.abort()


class Trusting(Receiver):
    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        int(rendezvous["lane"])
        return dict(super().open(rendezvous))


class AnswersNumbers(Receiver):
    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, Any]:
        return {**super().open(rendezvous), "lanes": 1}


class LetsErrorsOut(Receiver):
    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        self.lane.attach(self.setup.dial(0))
        return {}


class Told(Sender):
    def rendezvous(self) -> Mapping[str, str]:
        return {"lane": "0"}


class KeepsLanes(Sender):
    def attach(self, index: int, lane: socket.socket) -> None:
        if self.lane.sock is None and not self.lane.aborted:
            super().attach(index, lane)


# -- what is left --------------------------------------------------------------------------------


class LeaksThread(Receiver):
    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        threading.Thread(target=FOREVER.wait, daemon=True, name="leaked").start()
        return dict(super().open(rendezvous))


class LeaksDescriptor(Receiver):
    leaked: Final[list[int]] = []

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        self.leaked.append(os.open(os.devnull, os.O_RDONLY))
        return dict(super().open(rendezvous))


class LeaksSharedMemory(Sender):
    leaked: Final[list[Path]] = []

    def rendezvous(self) -> Mapping[str, str]:
        path = SHARED / f"netloader-test-{os.getpid()}-{len(self.leaked)}"
        path.write_bytes(b"left")
        self.leaked.append(path)
        return {}


class ClosesTwice(Sender):
    number = -1

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        self.number = os.dup(self.lane.take().fileno())
        try:
            return int(super().run(segments, lanes))
        finally:
            os.close(self.number)

    def end(self) -> None:
        if self.number >= 0:
            os.close(self.number)
        super().end()


class ReadsAfterEnd(Sender):
    def end(self) -> None:
        super().end()
        threading.Timer(0.1, lambda: self.store.reader()(Extent(0, 0, 1))).start()


class WritesAfterEnd(Receiver):
    def run(self, segments: Sequence[Segment]) -> int:
        self.kept = self.setup.lease.ledger.store.place(segments[0].extents[0])
        return int(super().run(segments))

    def end(self) -> None:
        super().end()
        threading.Timer(0.1, lambda: self.kept.fill_(0)).start()


class PulledSender(Sender):
    """Shows its memory to the other end, and does not look whether that still reads."""

    shown: Final[dict[int, Any]] = {}

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        self.shown.update({s.index: [*self.store.views(s)] for s in segments})
        sock = self.lane.take()
        sock.sendall(b"!")
        try:
            if not sock.recv(1):
                raise TransferError(Reason.TRANSFER_FAILED, "closed")
        except OSError as error:
            raise TransferError(Reason.TRANSFER_FAILED, "failed") from error
        return sum(segment.nbytes for segment in segments)


class PullingReceiver(Receiver):
    def run(self, segments: Sequence[Segment]) -> int:
        sock = self.lane.take()
        self.fill(sock, memoryview(bytearray(1)))
        for segment in segments:
            writer = self.setup.lease.expect(segment)
            there = b"".join(bytes(view) for view in PulledSender.shown[segment.index])
            for view in writer.views():
                view[:] = there[: len(view)]
                there = there[len(view) :]
                writer.update(view)
        sock.sendall(b"!")
        return sum(segment.nbytes for segment in segments)


class OnceOnly(Plain):  # type: ignore[misc]
    """Can attach to a store once."""

    def __init__(self) -> None:
        self._stores: list[Any] = []

    def attach(self, store: Any) -> Any:
        if any(store is other for other in self._stores):
            raise TransferError(Reason.TRANSFER_FAILED, "attached already")
        self._stores.append(store)
        return super().attach(store)


PULLED: Final = broken(PulledSender, PullingReceiver)
WAITS_FOR_EVER: Final = broken(WaitsForEver, ReceivesForEver)
