"""Accepting when descriptors run out: waiting clients are answered, and the log says why.

One descriptor is kept in reserve. When the process or the host has no more, it is closed for a
moment: the next connection can then be accepted, refused as busy, and closed.
"""

import contextlib
import errno
import os
import socket
from typing import IO

from netloader.fsm.messages import Reject
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.forks import INHERITANCE
from netloader.log import Logger, emit
from netloader.wire.frames import encode

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What accept(2) answers when there is no room for one more connection."""
EVERY_S = 60.0
"""Seconds between two log lines about it."""
RETRY_AFTER_S = 2.0
ANSWER = encode(
    Reject(Reason.BUSY.value, "the server is out of file descriptors", retry_after_s=RETRY_AFTER_S)
)


class Reserve:
    """One descriptor, and when the log last said that it was needed. For one thread.

    Raises:
        OSError: there is no descriptor to keep.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._file = _spare()
        self._told_at: float | None = None

    def tell(self, error: OSError, connections: int) -> None:
        """Log why nothing can be accepted, not more often than every EVERY_S seconds."""
        now = monotonic()
        if self._told_at is not None and now - self._told_at < EVERY_S:
            return
        self._told_at = now
        fields = {
            "netloader.detail": error.strerror or type(error).__name__,
            "netloader.connections": connections,
            "netloader.remedy": "raise the limit of open files (ulimit -n, LimitNOFILE)",
        }
        emit(self._logger, "netloader.listener.exhausted", fields)

    def turn_away(self, listener: socket.socket) -> bool:
        """Accept one connection, refuse it as busy, close it; False if that was not possible."""
        self._file.close()
        try:
            with INHERITANCE.atomic():
                sock = INHERITANCE.note(listener.accept()[0])
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.send(ANSWER)
            INHERITANCE.close(sock)
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                self._file = _spare()
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()


def _spare() -> IO[bytes]:
    return open(os.devnull, "rb", buffering=0)  # noqa: PTH123 - kept open by its owner
