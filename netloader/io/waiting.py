"""Polling with a deadline, and with a way to stop at once."""

import threading
from collections.abc import Callable

from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError

FIRST_PAUSE_S = 50e-6
LONGEST_PAUSE_S = 2e-3
"""Seconds between two calls; a chunk is noticed up to this late, while others move."""


def poll(ready: Callable[[], bool], what: str, timeout_s: float, stop: threading.Event) -> None:
    """Call `ready` until it returns true.

    Raises:
        TransferError: `stop` was set (TRANSFER_FAILED), or it took longer than `timeout_s`
            (TRANSFER_STALLED); `what` is what did not happen.
    """
    deadline = monotonic() + timeout_s
    pause = FIRST_PAUSE_S
    while not ready():
        if stop.wait(pause):
            raise TransferError(Reason.TRANSFER_FAILED, "aborted")
        if monotonic() > deadline and not ready():  # the process may have been stopped meanwhile
            detail = f"{what} took longer than {timeout_s:g} s"
            raise TransferError(Reason.TRANSFER_STALLED, detail)
        pause = min(2 * pause, LONGEST_PAUSE_S)
