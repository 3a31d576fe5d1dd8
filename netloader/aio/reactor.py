"""An asyncio event loop as the loop of links. It does not interpret the bytes.

Needs a loop with `add_reader`, as all loops on Linux have.
"""

import asyncio
import contextlib
import selectors
import socket
from collections.abc import Callable, MutableSet
from functools import partial

from netloader.io.clock import monotonic
from netloader.io.driver import Reactor, Timed

Call = Callable[[], None]
Ready = Callable[[int], None]


class AsyncioReactor(Reactor):
    """A `Reactor` in the event loop that runs when it is made. For that loop's thread, but `post`.

    What a callback raises goes to `trouble`.
    """

    def __init__(self, trouble: Callable[[Exception], None]) -> None:
        self.members: MutableSet[Timed] = set()
        self._loop = asyncio.get_running_loop()
        self._trouble = trouble
        self._watched: dict[socket.socket, tuple[int, Ready]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return monotonic()

    def post(self, call: Call) -> None:
        """Run `call` on the loop's thread soon; may be called from any thread."""
        # In the turn after the next look at the sockets: when the peer ends the session, what it
        # says comes before the failure that follows from it, and the verdict names the cause.
        with contextlib.suppress(RuntimeError):  # a closed loop needs no call
            self._loop.call_soon_threadsafe(self._loop.call_soon, self.call, call)

    def watch(self, sock: socket.socket, mask: int, call: Ready) -> None:
        """Call `call(ready_mask)` whenever a socket is ready; a mask of 0 stops it."""
        before, _ = known = self._watched.get(sock, (0, call))
        if known == (mask, call):
            return
        if mask:
            self._watched[sock] = (mask, call)
        else:
            del self._watched[sock]
        for event, add, remove in (
            (selectors.EVENT_READ, self._loop.add_reader, self._loop.remove_reader),
            (selectors.EVENT_WRITE, self._loop.add_writer, self._loop.remove_writer),
        ):
            if mask & event:
                add(sock, self.call, partial(call, event))
            elif before & event:
                remove(sock)

    def call(self, call: Call) -> None:
        """Run a call on the loop's thread now; then complete `until`, and set the timer."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - an error in one connection stops no other
            self._trouble(error)
        for condition, future in self._waiting:
            if not future.done() and condition():
                future.set_result(None)
        self._arm()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds. It is looked at after each call in this reactor."""
        self._arm()
        if condition():
            return
        waiting = (condition, self._loop.create_future())
        self._waiting.append(waiting)
        try:
            await waiting[1]
        finally:
            self._waiting.remove(waiting)

    def close(self) -> None:
        """Watch nothing any more."""
        for sock, (_, call) in list(self._watched.items()):
            self.watch(sock, 0, call)
        self.members.clear()
        self._arm()

    def _arm(self) -> None:
        due = min((t for m in self.members if (t := m.next_timeout()) is not None), default=None)
        if due == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = None
        if due is not None:
            self._timer = self._loop.call_later(max(0.0, due - self.now()), self._ring)

    def _ring(self) -> None:
        self._timer_at = None
        now = self.now()
        for member in tuple(self.members):
            due = member.next_timeout()
            if due is not None and due <= now:
                self.call(partial(member.handle_timeout, now))
        self._arm()
