"""Byte pipes and a socket on them: ordered and without duplicates, as TCP; the rest may fail."""

import errno
import socket

WINDOW = 1 << 16
"""Bytes that a connection takes before its reader has read any."""
ALL = 1 << 30
"""Bytes delivered at once, unless a test says otherwise."""


class Pipe:
    """One direction of a connection: bytes in order, which may stop coming, end or break off."""

    def __init__(self, window: int) -> None:
        self.bytes = bytearray()
        self.window = window
        self.ended = False
        self.broken = False
        self.stalled = False
        self.carried = 0
        """Bytes read so far."""
        self.abandoned = False
        """Its reader closed the socket."""

    @property
    def readable(self) -> bool:
        """Whether a reader would not block."""
        return not self.stalled and bool(self.bytes or self.ended or self.broken)

    @property
    def writable(self) -> bool:
        """Whether a writer would not block."""
        return self.broken or self.ended or len(self.bytes) < self.window

    def write(self, data: bytes) -> int:
        """Take what there is room for.

        Raises:
            BrokenPipeError: the direction is over.
            BlockingIOError: there is no room.
        """
        if self.broken or self.ended:
            raise BrokenPipeError(errno.EPIPE, "broken pipe")
        room = self.window - len(self.bytes)
        if not room:
            raise BlockingIOError
        self.bytes += data[:room]
        return min(room, len(data))

    def read(self, most: int) -> bytes:
        """The next bytes, or b"" at the end.

        Raises:
            ConnectionResetError: the direction broke off.
            BlockingIOError: there is nothing yet.
        """
        if self.broken:
            raise ConnectionResetError(errno.ECONNRESET, "connection reset")
        if not self.readable:
            raise BlockingIOError
        data = bytes(self.bytes[:most])
        del self.bytes[:most]
        self.carried += len(data)
        return data

    def snap(self) -> None:
        """Break the direction; bytes under way are lost, as after an RST."""
        self.broken = True
        self.bytes.clear()


class Plug:
    """One end of a simulated connection: those methods of a socket that a link calls."""

    def __init__(self, inward: Pipe, outward: Pipe) -> None:
        self.inward = inward
        self.outward = outward
        self.chunk = ALL
        """How many bytes the next read gives at most."""

    def send(self, data: bytes) -> int:
        """Write; to a peer that has closed, the connection breaks."""
        if self.outward.abandoned:
            self.snap()
        return self.outward.write(data)

    def recv(self, most: int) -> bytes:
        """Read at most `most` and at most `chunk` bytes."""
        return self.inward.read(min(most, self.chunk))

    def shutdown(self, how: int) -> None:
        """End the outward direction; other ways of it are not simulated."""
        if how != socket.SHUT_WR:
            raise NotImplementedError
        self.outward.ended = True

    def close(self) -> None:
        """Close. With unread input the peer gets a reset, and loses what it has not read."""
        self.inward.abandoned = True
        if self.inward.bytes:
            self.snap()
        self.outward.ended = True

    def snap(self) -> None:
        """Reset the connection."""
        self.inward.snap()
        self.outward.snap()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - the socket's signature
        """Nothing here blocks."""

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """There are no options."""
