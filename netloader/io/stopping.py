"""An end that the caller of `fill` sets, as an event of the session.

A caller may cancel, or limit the time of the whole call. Both become a `StopRequested`.
"""

import math
from typing import Protocol, runtime_checkable

from netloader.fsm.events import StopRequested
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.driver import Link

LOOK_S = 0.05
"""How often a token is asked whether it is set: a call has to end within a second of that."""
GOODBYE_S = 0.25
"""How long a stopped session waits for its peer to take the refusal and close the connection."""


@runtime_checkable
class CancelToken(Protocol):
    """Tells whether a call shall end: `threading.Event` is one. May be asked from any thread."""

    def is_set(self) -> bool:
        """Whether the call shall end."""


class Stop:
    """When one call has to end early. `timeout_s` counts from the construction."""

    def __init__(self, cancel: CancelToken | None, timeout_s: float | None) -> None:
        self._token = cancel
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._end = monotonic() + self._timeout_s
        self._cancelled = False

    def cancel(self) -> None:
        """End the call, from any thread, as its token would."""
        self._cancelled = True

    def request(self) -> StopRequested | None:
        """The event that ends the current session; None while the call may go on."""
        if self._cancelled or (self._token is not None and self._token.is_set()):
            return StopRequested(Reason.STOPPED, "cancelled by the client's caller")
        if monotonic() >= self._end:
            detail = f"the client's timeout_s of {self._timeout_s:g} s is over"
            return StopRequested(Reason.DEADLINE_PASSED, detail)
        return None

    def next_look(self, now: float) -> float:
        """When to call `request` again, in seconds of the monotonic clock; may be infinite."""
        return self._end if self._token is None else min(self._end, now + LOOK_S)


class StopWatch:
    """A member of a loop that stops one link when its call has to end."""

    def __init__(self, stop: Stop, link: Link) -> None:
        self._stop = stop
        self._link = link
        self._due = 0.0
        self._asked = False

    def next_timeout(self) -> float | None:
        """When to look; None when that is not needed any more."""
        return self._due if self._due < math.inf else None

    def handle_timeout(self, now: float) -> None:
        """Stop the session when it is time to; a session that is over is left alone."""
        if self._asked:
            self._link.close()
        if self._link.session.verdict is not None:
            self._due = math.inf
        elif request := self._stop.request():
            self._asked, self._due = True, now + GOODBYE_S
            self._link.handle(request)
        else:
            self._due = self._stop.next_look(now)
