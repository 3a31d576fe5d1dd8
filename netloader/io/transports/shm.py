"""Weights between two processes of one host and user, through a file that exists only in memory.

The server makes a memory file (memfd_create) with room for SLOTS chunks. The client opens it by the
server's /proc/<pid>/fd, which the kernel allows to processes of the same user that see the same
processes. It reads each chunk out of it to where the chunk belongs, and says so over data lane 0,
so the slot can be filled again. The file has no name: it is gone with the two processes, however
they end.

That both are on one host is proven by the file: the client finds in it the nonce whose digest is in
the offer, and answers with another digest of it. If any of it fails, the client has opened nothing
but a memory file of its own user, and another transport is tried.
"""

import hashlib
import hmac
import os
import secrets
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.forks import INHERITANCE
from netloader.io.host import boot_id
from netloader.io.store.base import Store
from netloader.io.transports.base import Capabilities, Direction, ReceiverSetup, SenderSetup
from netloader.io.transports.lanes import Lanes, lane_error, set_stall
from netloader.io.transports.tcp import (
    after,
    as_transfer_error,
    batches,
    go_on,
    receive_batch,
    send_batch,
)

SLOT_BYTES = 4 << 20
SLOTS = 4
"""Chunks that may be filled and not yet read: 16 MiB of memory for each session."""
NONCE_BYTES = 32
NONCE_AT = SLOTS * SLOT_BYTES
FILE_BYTES = NONCE_AT + NONCE_BYTES
FILE_NAME = "netloader"
FILLED, FREED = b"f", b"r"
"""One byte on the lane for each chunk, from the server and from the client."""


def _proof(nonce: bytes, side: str) -> str:
    return hashlib.sha256(side.encode() + b"\0" + nonce).hexdigest()


def _cannot(why: str) -> TransferError:
    return TransferError(Reason.TRANSFER_FAILED, f"shm cannot begin: {why}")


class ShmSender:
    """The server's end. It makes the memory file, and fills its slots as they become free."""

    def __init__(self, store: Store, setup: SenderSetup) -> None:
        self._store = store
        self._stall_s = setup.stall_s
        self._lanes = Lanes()
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._filled = 0
        try:
            with INHERITANCE.atomic():
                fd = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC)
                self._file = INHERITANCE.note(os.fdopen(fd, "r+b", buffering=0))
            os.ftruncate(fd, FILE_BYTES)
            os.pwrite(fd, self._nonce, NONCE_AT)
        except OSError as error:
            raise _cannot(f"no memory file ({error.strerror})") from error

    def rendezvous(self) -> Mapping[str, str]:
        """Where the file is, and what proves that it is the right one."""
        return {
            "boot_id": boot_id(),
            "pid": str(os.getpid()),
            "fd": str(self._file.fileno()),
            "proof": _proof(self._nonce, "server"),
        }

    def answered(self, answer: Mapping[str, str]) -> None:
        """See that the client has read the file."""
        expected = _proof(self._nonce, "client")
        said = answer.get("proof", "").encode(errors="surrogatepass")
        if not hmac.compare_digest(said, expected.encode()):
            raise _cannot("the client has not read the memory file")

    def attach(self, index: int, lane: socket.socket) -> None:
        """Take the lane that says which slots are filled and which are free."""
        set_stall(lane, self._stall_s)
        self._lanes.attach(index, lane)

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Fill slot after slot; returns when the client has read them all."""
        del lanes
        return self._lanes.work(1, self._stall_s, lambda _, lane: self._serve(segments, lane))

    def _serve(self, segments: Sequence[Segment], lane: socket.socket) -> int:
        try:
            unread = 0
            for segment in segments:
                for batch in batches(self._store.views(segment), SLOT_BYTES):
                    if unread == SLOTS:
                        self._expect(lane, FREED)
                        unread -= 1
                    self._fill(batch)
                    send_batch(lane, [memoryview(FILLED)])
                    unread += 1
            for _ in range(unread):
                self._expect(lane, FREED)
        except OSError as error:
            raise as_transfer_error(error) from error
        return sum(segment.nbytes for segment in segments)

    def _fill(self, batch: list[memoryview]) -> None:
        go_on(self._lanes)
        at = self._filled % SLOTS * SLOT_BYTES
        while batch:
            count = os.pwritev(self._file.fileno(), batch, at)
            batch, at = after(batch, count), at + count
        self._filled += 1

    @staticmethod
    def _expect(lane: socket.socket, word: bytes) -> None:
        said = bytearray(1)
        receive_batch(lane, [memoryview(said)])
        if said != word:
            raise TransferError(
                Reason.TRANSFER_FAILED, "the client said something else on the lane"
            )

    def abort(self) -> None:
        """Shut the lane down."""
        self._lanes.abort()

    def end(self) -> None:
        """Close the lane and the file; the client may still have it open, with no weights new."""
        self._lanes.close()
        INHERITANCE.close(self._file)


class ShmReceiver:
    """The client's end. It reads out of the server's memory file."""

    def __init__(self, setup: ReceiverSetup) -> None:
        self._setup = setup
        self._lanes = Lanes()
        self._fd = -1
        self._read_count = 0

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        """Open the server's file, see that it is the right one, and open the lane."""
        if rendezvous.get("boot_id") != boot_id() or not boot_id():
            raise _cannot("the server is on another host")
        pid, number = rendezvous.get("pid", ""), rendezvous.get("fd", "")
        if not (pid.isascii() and pid.isdigit() and number.isascii() and number.isdigit()):
            raise _cannot("the server names no memory file")
        self._fd = _opened(Path("/proc", pid, "fd", number))
        nonce = os.pread(self._fd, NONCE_BYTES, NONCE_AT)
        if not hmac.compare_digest(_proof(nonce, "server"), rendezvous.get("proof", "")):
            raise _cannot("the memory file is not the server's")
        try:
            lane = self._setup.dial(0)
        except OSError as error:
            raise lane_error(error, "could not be opened") from error
        set_stall(lane, self._setup.stall_s)
        self._lanes.attach(0, lane)
        return {"proof": _proof(nonce, "client")}

    def join(self) -> None:
        """Do nothing: the sender looks at the answer alone."""

    def run(self, segments: Sequence[Segment]) -> int:
        """Read chunk after chunk to its place, and verify what is there."""
        return self._lanes.work(1, self._setup.stall_s, lambda _, lane: self._take(segments, lane))

    def _take(self, segments: Sequence[Segment], lane: socket.socket) -> int:
        try:
            for segment in segments:
                writer = self._setup.lease.expect(segment)
                for batch in batches(writer.views(), SLOT_BYTES):
                    go_on(self._lanes)
                    receive_batch(lane, [memoryview(bytearray(1))])
                    self._read(batch)
                    send_batch(lane, [memoryview(FREED)])
                    for view in batch:  # where it is now: the file may change under a reader
                        writer.update(view)
        except OSError as error:
            raise as_transfer_error(error) from error
        return sum(segment.nbytes for segment in segments)

    def _read(self, batch: list[memoryview]) -> None:
        at = self._read_count % SLOTS * SLOT_BYTES
        while batch:
            count = os.preadv(self._fd, batch, at)
            if not count:
                raise TransferError(Reason.TRANSFER_FAILED, "the memory file was cut short")
            batch, at = after(batch, count), at + count
        self._read_count += 1

    def abort(self) -> None:
        """Shut the lane down."""
        self._lanes.abort()

    def end(self) -> None:
        """Close the lane and the file."""
        self._lanes.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _opened(path: Path) -> int:
    """Open a memory file of this user; the path comes from the peer, so nothing else is opened."""
    try:
        if not str(path.readlink()).startswith(f"/memfd:{FILE_NAME}"):
            raise _cannot("the server's file is no memory file")
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot(f"the server's file cannot be opened ({error.strerror})") from error
    found = os.fstat(fd)
    if found.st_uid == os.geteuid() and found.st_size == FILE_BYTES and stat.S_ISREG(found.st_mode):
        return fd
    os.close(fd)
    raise _cannot("the server's file is not of this user, or of another version")


@dataclass(frozen=True, slots=True)
class ShmAttachment:
    """Some weights, as they are: the memory file belongs to a session."""

    store: Store

    def sender(self, setup: SenderSetup) -> ShmSender:
        """Make the server's end."""
        return ShmSender(self.store, setup)

    def receiver(self, setup: ReceiverSetup) -> ShmReceiver:
        """Make the client's end."""
        return ShmReceiver(setup)

    def detach(self) -> None:
        """Do nothing."""


class Shm:
    """A memory file that both processes have open."""

    name = "shm"
    capabilities = Capabilities(direction=Direction.PULL, same_host=True)

    def obstacle(self) -> str:
        """Linux is needed, and a /proc that shows the host's boot id."""
        if not hasattr(os, "memfd_create") or not boot_id():
            return "memory files, or the host's boot id in /proc, are not available"
        return ""

    def attach(self, store: Store) -> ShmAttachment:
        """Keep a reference to the weights."""
        return ShmAttachment(store)


SHM = Shm()
