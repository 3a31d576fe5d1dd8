"""A rendezvous store of `torch.distributed` for two processes, over one data lane.

`torch.distributed` needs a key-value store to introduce the members of a process group. A
TCPStore would need a second port on the server; this store copies every key to the other side
over a lane of the port that is already open, so there is no port to race for and nothing to
expose. Frames: two 4-byte lengths (big-endian), then key and value.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.transports.refusal import DETAILS
from netloader.wire.frames import MAGIC

LENGTHS = struct.Struct(">II")
MAX_BYTES = 1 << 20
"""All that a peer may store. A group needs a few keys of a few hundred bytes."""

LAST_WORDS_S = 1.0
"""How long to read on after the other side has closed; all it sent has arrived by then."""
ARRIVED = "arrived: "
"""Before the name of a key: what its receiver answers."""


class LaneStore(Store):
    """Both sides hold one; what either sets, both can get."""

    def __init__(self, lane: socket.socket, timeout_s: float) -> None:
        super().__init__()
        self._lane = lane
        self._timeout_s = timeout_s
        self._values: dict[str, bytes] = {}
        self._closed = False
        self._refused = False
        self._change = threading.Condition()
        self._speaking = threading.Lock()
        threading.Thread(target=self._listen, name="netloader-store", daemon=True).start()

    def set(self, key: str, value: bytes | str) -> None:
        """Set a key here and on the other side; returns when it has arrived there.

        A thread that then waits for the other side inside a library, where it cannot be woken,
        knows that the other side has got as far.

        Raises:
            RuntimeError: not within the time-out, or the other side is gone.
        """
        data = value.encode() if isinstance(value, str) else bytes(value)
        try:
            self._tell(key, data)
        except OSError:
            with self._change:  # what the other side said before it closed may be the cause
                self._change.wait_for(lambda: self._closed, LAST_WORDS_S)
            if not self._refused:
                raise
        self.wait([ARRIVED + key])

    def _tell(self, key: str, data: bytes) -> None:
        name = key.encode()
        self._keep(key, data)
        with self._speaking:
            self._lane.sendall(LENGTHS.pack(len(name), len(data)) + name + data)

    def get(self, key: str) -> bytes:
        """The value of a key, waiting for it."""
        self.wait([key])
        return self._values[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are set.

        Raises:
            RuntimeError: not within the time-out, or the other side is gone.
            TransferError: the lane reached a server that does not know the session.
        """
        seconds = timeout.total_seconds() if timeout else self._timeout_s

        def here() -> bool:
            return self._closed or all(key in self._values for key in keys)

        with self._change:
            arrived = self._change.wait_for(here, seconds)
            if self._refused:
                raise TransferError(Reason.UNKNOWN_SESSION, DETAILS[Reason.UNKNOWN_SESSION])
            if not arrived or not all(key in self._values for key in keys):
                raise RuntimeError(f"the other side did not set {', '.join(keys)}")

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are set."""
        return all(key in self._values for key in keys)

    def close(self) -> None:
        """Wake every thread that waits, here and on the other side."""
        self._wake()
        with contextlib.suppress(OSError):
            self._lane.shutdown(socket.SHUT_RDWR)

    def _wake(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _keep(self, key: str, value: bytes) -> None:
        with self._change:
            self._values[key] = value
            self._change.notify_all()

    def _listen(self) -> None:
        room = MAX_BYTES
        try:
            while True:
                head = self._read(LENGTHS.size)
                self._refused = head.startswith(MAGIC)  # as lengths that is more than MAX_BYTES
                key_bytes, value_bytes = LENGTHS.unpack(head)
                room -= key_bytes + value_bytes
                if room < 0:
                    self._wake()
                    while self._lane.recv(MAX_BYTES):
                        pass
                    return
                key = self._read(key_bytes).decode(errors="replace")
                self._keep(key, self._read(value_bytes))
                if not key.startswith(ARRIVED):
                    self._tell(ARRIVED + key, b"")
        except OSError:
            pass
        finally:
            self.close()

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = self._lane.recv(count - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return bytes(data)
