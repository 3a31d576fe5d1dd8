"""Work beside the engine. Law: it yields to everything else, and none ends without a word.

What a thread raises is logged and given to whoever asked for the work; so is a thread that cannot
be started. The lower priority is a courtesy: where the system forbids it, the work is done without.
"""

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable

from netloader.io.forks import only_here
from netloader.log import Logger, emit, get_logger

NICE = 10
"""Background hashing yields to the engine's threads."""
END_S = 5.0
"""How long a process that ends waits for background work: it stops at the next segment."""


class Background:
    """The background threads of this process."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Begin without threads: in a forked child those of the parent do not exist."""
        self.ending = threading.Event()
        """Set when the interpreter is about to go: stop as soon as you can."""
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        atexit.register(only_here(self.end))

    def run(
        self,
        name: str,
        work: Callable[[], None],
        failed: Callable[[Exception], object] = lambda _: None,
        logger: Logger | None = None,
    ) -> threading.Thread:
        """Run `work` on a thread that yields to everything else in the process.

        Never raises: when the thread cannot be started or `work` raises, that is logged and
        `failed` is called with it, on this thread or on that of the work.
        """

        def nicely() -> None:
            with contextlib.suppress(OSError):  # a sandbox may forbid it (EPERM)
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whoever asked for the work hears of it
                self._tell(name, error, logger)
                failed(error)

        thread = threading.Thread(target=nicely, name=name, daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the process may have no more threads
            self._threads.discard(thread)
            self._tell(name, error, logger)
            failed(error)
        return thread

    def _tell(self, name: str, error: Exception, logger: Logger | None) -> None:
        fields = {"netloader.work": name, "netloader.detail": f"{type(error).__name__}: {error}"}
        told = logger or get_logger("background")
        emit(told, "netloader.background.failed", fields, exc_info=error)

    def end(self) -> None:
        """Have no thread in the middle of a torch operation when the interpreter goes.

        A thread that asks a finalizing interpreter for its lock is unwound, and the C++ it is
        unwound through ends the process with SIGABRT (CPython 3.11, `PyEval_RestoreThread`).
        """
        self.ending.set()
        for thread in list(self._threads):
            thread.join(END_S)


BACKGROUND = Background()
"""That of this process."""
in_background = BACKGROUND.run
