"""One session of a fetch, in a loop that may carry several.

All methods but `join` are for the thread of the loop; none of them waits.
"""

import math
from collections.abc import Callable

from netloader.config import Endpoint
from netloader.errors import UnsafeError
from netloader.fsm.events import Ask, Finish, StopRequested
from netloader.fsm.fetch_events import Stage
from netloader.fsm.reasons import Reason
from netloader.fsm.source import Source
from netloader.io.asking import Asking
from netloader.io.client_worker import ClientWorker
from netloader.io.clock import monotonic
from netloader.io.conversation import STOP_S, Conversation, Dialled
from netloader.io.driver import Reactor
from netloader.io.stopping import GOODBYE_S

CONCLUDE_S = 1.0
"""How long a session that is not needed may take to end well, before it is dropped: one that still
opens its transport must not hold up a fill that is complete."""
NOT_NEEDED = StopRequested(Reason.NOT_NEEDED, "other sources have sent everything")
OTHER_WEIGHTS = StopRequested(
    Reason.STOPPED, "the source offers other weights than those that are being received"
)
TOO_SLOW = StopRequested(
    Reason.STOPPED, "slow: what it has not sent yet is asked of another source"
)
NOTHING_TO_GIVE = StopRequested(Reason.STOPPED, "it had nothing that was missing, for too long")


def why_dropped(source: Source) -> StopRequested:
    """What a source is told that the fetch has dropped."""
    if source.then is Stage.ASIDE:
        return TOO_SLOW if source.keeps_root else OTHER_WEIGHTS
    if source.holding.missing():
        return NOTHING_TO_GIVE
    return NOT_NEEDED


class SourceSession:
    """A conversation and what a fetch wants of it. A member of its loop, from `begin` to its end.

    `over` of `begin` is called once, when the connection is closed and the worker has ended.
    """

    def __init__(
        self, endpoint: Endpoint, conversation: Conversation, worker: ClientWorker, asking: Asking
    ) -> None:
        self.endpoint = endpoint
        self.conversation = conversation
        self.worker = worker
        self._asking = asking
        self._dialled: Dialled | None = None
        self._loop: Reactor | None = None
        self._over: Callable[[], None] = lambda: None
        self._ended = False
        """Whether the worker has ended."""
        self._lost: UnsafeError | None = None
        """The worker was waited for in vain."""
        self._due = math.inf
        self._then: Callable[[], None] = lambda: None
        """What is done when it is due."""

    def begin(self, loop: Reactor, over: Callable[[], None]) -> None:
        """Connect."""
        self._loop = loop
        self._over = over
        self.worker.ended = lambda: loop.post(self._worker_ended)
        loop.members.add(self)
        self._dialled = self.conversation.begin(loop, lambda: loop.post(self._look))

    # -- what the fetch wants --------------------------------------------------------------------

    def take(self) -> None:
        """Go on: the offer was taken."""
        self._asking.take()

    def ask(self, segments: tuple[int, ...]) -> None:
        """Ask for these segments."""
        self._asking.answer(Ask(segments))

    def conclude(self) -> None:
        """End well, as soon as the session can."""
        self._asking.answer(Finish())
        self._set(CONCLUDE_S, lambda: self.drop(NOT_NEEDED))

    def drop(self, why: StopRequested) -> None:
        """End, tell the source why, and give it a moment to hear it."""
        if self._dialled is not None and not self._dialled.link.closed:
            self._set(GOODBYE_S, self.close)
            self._dialled.link.handle(why)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection and stop all work, without a word."""
        if self._dialled is not None:
            self._dialled.close()

    def join(self) -> None:
        """Wait until all work has ended, after `close`. Blocks; for any thread.

        Raises:
            UnsafeError: the transfer was aborted and did not end.
        """
        if self._lost is not None:
            raise self._lost
        self.conversation.join()

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        return None if self._due == math.inf else self._due

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""
        del now
        self._due = math.inf
        self._then()

    def _set(self, seconds: float, then: Callable[[], None]) -> None:
        self._due, self._then = monotonic() + seconds, then

    def _worker_ended(self) -> None:
        self._ended = True
        self._look()

    def _look(self) -> None:
        """Whether it is over."""
        if self._loop is None or self._dialled is None or not self._dialled.link.closed:
            return
        if not self._ended:
            patience_s = self.conversation.session.deadlines.stall_s + STOP_S
            self._set(patience_s, self._give_up)
            return
        self._due = math.inf
        self._loop.members.discard(self)
        self._loop = None
        self._dialled.close()
        self.join()  # the worker's thread returns at this moment
        self._over()

    def _give_up(self) -> None:
        text = "an aborted transfer is still running; the tensors must not be used"
        self._lost = UnsafeError(text)
        raise self._lost
