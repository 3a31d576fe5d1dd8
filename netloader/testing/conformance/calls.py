"""Calls to a transport on threads, each with a time limit, and what was seen of them."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from netloader.io.clock import monotonic
from netloader.io.failure import TransferError

SOON_S = 20.0
"""How long a check waits for what takes milliseconds: the machine may be busy."""
PROMPT_S = 1.0
"""What the contract allows for `abort` itself, and for `run` and `open` to end after it."""
MARGIN_S = 1.0
"""Added to every limit that the contract sets, for a machine that is busy."""

T = TypeVar("T")


class Observed(Exception):  # noqa: N818 - what was seen may be no error in a check that wants it
    """What a check saw that the contract forbids."""


class Call:
    """One call, which a worker thread makes."""

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self.name = name
        self._function = function
        self._over = threading.Event()
        self._result: Any = None
        self._raised = ""
        self._failure: TransferError | None = None

    def make(self) -> None:
        """Make the call, on this thread."""
        try:
            self._result = self._function()
        except (
            TransferError
        ) as error:  # a copy: the frames of its traceback would keep all they use
            self._failure = TransferError(error.reason, error.detail)
            self._raised = f"TransferError: {error}"
        except BaseException as error:  # noqa: BLE001 - it is what a check looks at
            self._raised = f"{type(error).__name__}: {error}"
        self._over.set()

    def ended(self, timeout_s: float) -> bool:
        """Whether it is over, waiting for at most `timeout_s`."""
        return self._over.wait(timeout_s)

    def result(self, timeout_s: float = SOON_S) -> Any:
        """What the call returned.

        Raises:
            Observed: it raised, or did not return in time.
        """
        self._must_end(timeout_s)
        must(not self._raised, f"{self.name} raised {self._raised}")
        return self._result

    def failure(self, timeout_s: float) -> TransferError:
        """The TransferError that the call raised.

        Raises:
            Observed: it returned, raised something else, or did neither in time.
        """
        self._must_end(timeout_s)
        if self._failure is None:
            did = f"raised {self._raised}" if self._raised else f"returned {self._result!r}"
            raise Observed(f"{self.name} {did}, and was to raise a TransferError")
        return self._failure

    def without_bug(self, timeout_s: float = SOON_S) -> None:
        """Let the call return or raise a TransferError.

        Raises:
            Observed: it did neither in time.
        """
        self._must_end(timeout_s)
        if self._raised:
            self.failure(timeout_s)

    def _must_end(self, timeout_s: float) -> None:
        if not self._over.wait(timeout_s):
            raise Observed(f"{self.name} did not end within {timeout_s:g} s")


class CallingThread:
    """A thread that makes one call after the other, as the worker thread of a session does."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="transport-check", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.make()

    def call(self, name: str, function: Callable[[], Any]) -> Call:
        """Have a call made when those before it are over."""
        call = Call(name, function)
        self._calls.put(call)
        return call

    def stop(self) -> None:
        """End the thread after its last call; one that hangs is left behind."""
        self._calls.put(None)
        self._thread.join(PROMPT_S)


def must(holds: bool, seen: str) -> None:  # noqa: FBT001 - it is what is asserted
    """Raise Observed unless it holds."""
    if not holds:
        raise Observed(seen)


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Whether a condition becomes true in time."""
    end = monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if monotonic() > end:
            return False
        pause.wait(0.01)
    return True
