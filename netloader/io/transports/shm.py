"""Weights between two processes of one host and user: the client reads the server's memory.

The server tells the client, over data lanes, where the bytes of each segment are. The client reads
them with process_vm_readv into their places, about 1 MiB a call, and hashes each while it is in the
cache. Nothing is copied twice, and the server does no work. It keeps the memory of a segment until
the client says that it has read it, and `run` returns when all has been read.

That both are on one host, and that it is this process, is proven before: both name the boot of the
host and their PID namespace, the server also its pid, its start time and where a random nonce is in
its memory. The client reads the nonce, compares it with the digest in the offer, and answers with
another digest of it. A peer that names another process makes a client read 32 bytes of a process of
its own user, and learns nothing of them.
"""

import hashlib
import hmac
import os
import secrets
import select
import socket
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.memory import address_of
from netloader.io.store.base import Store
from netloader.io.store.ledger import SegmentWriter
from netloader.io.transports.base import Capabilities, Direction, ReceiverSetup, SenderSetup
from netloader.io.transports.lanes import Lanes, lane_error, send_at_once, set_stall
from netloader.io.transports.remote_memory import Spans, Tracer, read_some, started, this_host
from netloader.io.transports.tcp import (
    after,
    as_transfer_error,
    batches,
    expect_word,
    go_on,
    receive_batch,
    send_batch,
)

READ_BYTES = 1 << 20
"""Bytes per call: long against the call, and in the L2 cache when they are hashed."""
AHEAD = 2
"""Segments of a lane that the client was told of and has not read: it need not wait for the next.
Of a store that copies to be read, the copies of so many are kept."""
NONCE_BYTES = 32
PROOF_CHARS = 64
WORD_BYTES = 8
VIEW_BYTES = 4096
"""A segment has at most one view for each extent, and one more for each of so many bytes."""
ADDRESSES = 1 << 63
"""No process has memory beyond."""
READ, ALLOWED = b"r", b"a"
"""One byte on a lane: from the client for each segment, and from the server before the proof."""


def _proof(nonce: bytes | bytearray, side: str) -> str:
    return hashlib.sha256(side.encode() + b"\0" + nonce).hexdigest()


def _same(said: str, expected: str) -> bool:
    return hmac.compare_digest(said.encode(errors="surrogatepass"), expected.encode())


def _cannot(why: str) -> TransferError:
    return TransferError(Reason.TRANSFER_FAILED, f"shm cannot begin: {why}")


class ShmSender:
    """The server's end: it says where the bytes are, and keeps them until they were read."""

    def __init__(self, store: Store, setup: SenderSetup, tracer: Tracer) -> None:
        self._store = store
        self._stall_s = setup.stall_s
        self._tracer = tracer
        self._lanes = Lanes()
        self._nonce = bytearray(secrets.token_bytes(NONCE_BYTES))

    def rendezvous(self) -> Mapping[str, str]:
        """Which process this is, and what proves it."""
        return {
            **this_host(),
            "pid": str(os.getpid()),
            "started": started(os.getpid()),
            "nonce_at": str(address_of(memoryview(self._nonce))),
            "proof": _proof(self._nonce, "server"),
        }

    def answered(self, answer: Mapping[str, str]) -> None:
        """See that the client has read the nonce; under Yama, allow it to first."""
        said, pid = answer.get("proof", ""), _number(answer.get("pid", ""))
        if not said and Tracer.needed():
            if not self._tracer.allow(pid, self):
                raise _cannot("another process was allowed to read this one (Yama)")
            said = self._asked()
        if not _same(said, _proof(self._nonce, "client")):
            raise _cannot("the client has not read the server's memory")

    def _asked(self) -> str:
        """What a client says that had to be allowed first."""
        (lane,) = self._lanes.take(1, self._stall_s)
        said = bytearray(PROOF_CHARS)
        try:
            send_batch(lane, [memoryview(ALLOWED)])
            receive_batch(lane, [memoryview(said)])
        except OSError as error:
            raise as_transfer_error(error) from error
        finally:
            self._lanes.release()
        return said.decode(errors="replace")

    def attach(self, index: int, lane: socket.socket) -> None:
        """Take a lane."""
        set_stall(lane, self._stall_s)
        send_at_once(lane)
        self._lanes.attach(index, lane)

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Tell where segments are; returns when the client has read them all."""
        return self._lanes.work(lanes, self._stall_s, partial(self._lane, segments, lanes))

    def _lane(self, segments: Sequence[Segment], lanes: int, k: int, lane: socket.socket) -> int:
        own, unread = segments[k::lanes], deque[list[memoryview]]()
        try:
            for segment in own:
                views = [_shown(view) for view in self._store.views(segment)]
                go_on(self._lanes)
                pieces = array("Q", (len(views),))
                for view in views:
                    pieces.append(address_of(view))
                    pieces.append(len(view))
                send_batch(lane, [memoryview(pieces).cast("B")])
                unread.append(views)
                if len(unread) == AHEAD:
                    expect_word(lane, READ)
                    unread.popleft()
            while unread:
                expect_word(lane, READ)
                unread.popleft()
        except OSError as error:
            raise as_transfer_error(error) from error
        return sum(segment.nbytes for segment in own)

    def abort(self) -> None:
        """Shut the lanes down: the client reads no more."""
        self._lanes.abort()

    def end(self) -> None:
        """Close the lanes, and let nobody read this process any more."""
        self._lanes.close()
        self._tracer.end(self)


def _shown(view: memoryview) -> memoryview:
    """A view whose address can be told; a copy of one that is only for reading."""
    return memoryview(bytearray(view)) if view.readonly else view


def _number(text: str) -> int:
    """A number of the peer; 0 for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


class ShmReceiver:
    """The client's end. It reads out of the server's memory."""

    def __init__(self, setup: ReceiverSetup) -> None:
        self._setup = setup
        self._lanes = Lanes()
        self._told: Mapping[str, str] = {}
        self._pid = 0
        self._proven = False

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        """See that the server is on this host, read its nonce, and open the lanes."""
        here = this_host()
        if not here or any(rendezvous.get(name) != value for name, value in here.items()):
            raise _cannot("the server is on another host, or in another PID namespace")
        self._told, self._pid = rendezvous, _number(rendezvous.get("pid", ""))
        began = started(self._pid)
        if not began or began != rendezvous.get("started"):
            raise _cannot("the server's process is not there")
        proof = ""
        try:
            proof = self._read_nonce()
        except PermissionError as error:
            if not Tracer.needed():
                raise _cannot(f"its memory may not be read ({error.strerror})") from error
        for index in range(self._setup.lanes):
            try:
                lane = self._setup.dial(index)
            except OSError as error:
                raise lane_error(error, "could not be opened") from error
            set_stall(lane, self._setup.stall_s)
            send_at_once(lane)
            self._lanes.attach(index, lane)
        return {"pid": str(os.getpid()), "proof": proof}

    def _read_nonce(self) -> str:
        """Read what proves that it is the server's memory; returns the proof of that."""
        nonce = bytearray(NONCE_BYTES)
        at = _number(self._told.get("nonce_at", ""))
        count = read_some(self._pid, [memoryview(nonce)], Spans((at, NONCE_BYTES)))
        if count < NONCE_BYTES or not _same(self._told.get("proof", ""), _proof(nonce, "server")):
            raise _cannot("the memory is not the server's")
        self._proven = True
        return _proof(nonce, "client")

    def join(self) -> None:
        """Read the nonce now if the server had to allow that first."""
        if self._proven:
            return
        try:
            (lane,) = self._lanes.take(1, self._setup.stall_s)
            receive_batch(lane, [memoryview(bytearray(1))])
            proof = self._read_nonce()
            send_batch(lane, [memoryview(proof.encode())])
        except PermissionError as error:
            raise _cannot(f"its memory may not be read ({error.strerror})") from error
        except OSError as error:
            raise as_transfer_error(error) from error
        finally:
            self._lanes.release()

    def run(self, segments: Sequence[Segment]) -> int:
        """Read every segment to its place, and verify what is there; one thread a lane."""
        job = partial(self._lane, segments, self._setup.lanes)
        return self._lanes.work(self._setup.lanes, self._setup.stall_s, job)

    def _lane(self, segments: Sequence[Segment], lanes: int, k: int, lane: socket.socket) -> int:
        own = segments[k::lanes]
        gone = select.poll()
        gone.register(lane, select.POLLRDHUP)
        try:
            for segment in own:
                spans = _spans(lane, segment)
                self._read(self._setup.lease.expect(segment), spans, gone)
                send_batch(lane, [memoryview(READ)])
        except PermissionError as error:
            detail = f"the server's memory may not be read any more ({error.strerror})"
            raise TransferError(Reason.TRANSFER_FAILED, detail) from error
        except OSError as error:
            raise as_transfer_error(error) from error
        return sum(segment.nbytes for segment in own)

    def _read(self, writer: SegmentWriter, spans: Spans, gone: select.poll) -> None:
        """Read a segment. Before each call, see that the server has not ended the session."""
        for batch in batches(writer.views(), READ_BYTES):
            left = batch
            while left:
                go_on(self._lanes)
                if gone.poll(0):
                    raise TransferError(Reason.TRANSFER_FAILED, "the server has ended the session")
                left = after(left, read_some(self._pid, left, spans))
            writer.update(*batch)  # where it is now: what it was read from may change

    def abort(self) -> None:
        """Shut the lanes down."""
        self._lanes.abort()

    def end(self) -> None:
        """Close the lanes."""
        self._lanes.close()


def _spans(lane: socket.socket, segment: Segment) -> Spans:
    """Where the server says that a segment is.

    Raises:
        TransferError: it names more pieces than a segment has, or other bytes than it has.
    """
    count = array("Q", (0,))
    receive_batch(lane, [memoryview(count).cast("B")])
    if count[0] <= len(segment.extents) + segment.nbytes // VIEW_BYTES:
        pieces = array("Q", bytes(2 * WORD_BYTES * count[0]))
        receive_batch(lane, [memoryview(pieces).cast("B")] if pieces else [])
        if sum(pieces[1::2]) == segment.nbytes and max(pieces[::2], default=0) < ADDRESSES:
            return Spans(pieces)
    detail = f"the server describes segment {segment.index} as what it is not"
    raise TransferError(Reason.TRANSFER_FAILED, detail)


@dataclass(frozen=True, slots=True)
class ShmAttachment:
    """Some weights, as they are: nothing is prepared."""

    store: Store
    tracer: Tracer

    def sender(self, setup: SenderSetup) -> ShmSender:
        """Make the server's end."""
        return ShmSender(self.store, setup, self.tracer)

    def receiver(self, setup: ReceiverSetup) -> ShmReceiver:
        """Make the client's end."""
        return ShmReceiver(setup)

    def detach(self) -> None:
        """Do nothing."""


class Shm:
    """The memory of the server's process."""

    name = "shm"
    capabilities = Capabilities(direction=Direction.PULL, same_host=True)

    def __init__(self) -> None:
        self._tracer = Tracer()

    def obstacle(self) -> str:
        """Linux is needed, and a sandbox that allows process_vm_readv."""
        try:
            here, into = bytearray(1), bytearray(1)
            spans = Spans((address_of(memoryview(here)), 1))
            read_some(os.getpid(), [memoryview(into)], spans)
        except (OSError, TransferError) as error:
            return f"memory of other processes cannot be read here ({error})"
        return "" if this_host() else "the host's boot id is not in /proc"

    def attach(self, store: Store) -> ShmAttachment:
        """Keep a reference to the weights."""
        return ShmAttachment(store, self._tracer)


SHM = Shm()
