"""Work beside the engine. It runs at low priority, and none of it fails silently.

An exception in a background thread is logged and passed to the caller's `failed` callback. So is
the failure to start a thread. Lowering the priority is best effort: where the system forbids it,
the work runs at normal priority.
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
        """Start with no threads: a forked child does not have those of its parent."""
        self.ending = threading.Event()
        """Set when the interpreter is about to exit; work should then stop as soon as it can."""
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        """Those that were started."""
        self._lock = threading.Lock()
        """Held while one is started, so that `end` knows it and can join it."""
        atexit.register(only_here(self.end))

    def run(
        self,
        name: str,
        work: Callable[[], None],
        failed: Callable[[Exception], object] = lambda _: None,
        logger: Logger | None = None,
    ) -> threading.Thread:
        """Run `work` on a thread of low priority.

        Never raises. If the thread cannot be started, or `work` raises, the error is logged and
        `failed` is called with it, on the calling thread or on the new one. When the interpreter
        is about to exit nothing is started, which is not logged.
        """

        def nicely() -> None:
            with contextlib.suppress(OSError):  # a sandbox may forbid it (EPERM)
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            try:
                work()
            except Exception as error:  # noqa: BLE001 - logged, and passed to `failed`
                self._tell(name, error, logger)
                failed(error)

        thread = threading.Thread(target=nicely, name=name, daemon=True)
        try:
            self._start(thread)
        except RuntimeError as error:  # the process may have no more threads
            if not self.ending.is_set():
                self._tell(name, error, logger)
            failed(error)
        return thread

    def _start(self, thread: threading.Thread) -> None:
        with self._lock:
            if self.ending.is_set():
                raise RuntimeError("the process ends")
            thread.start()
            self._threads.add(thread)

    def _tell(self, name: str, error: Exception, logger: Logger | None) -> None:
        fields = {"netloader.work": name, "netloader.detail": f"{type(error).__name__}: {error}"}
        told = logger or get_logger("background")
        emit(told, "netloader.background.failed", fields, exc_info=error)

    def end(self) -> None:
        """Make sure no thread is inside a torch operation when the interpreter exits.

        A thread that requests the interpreter lock during finalization is unwound. If that passes
        through C++ frames, the process ends with SIGABRT (CPython 3.11, `PyEval_RestoreThread`).
        """
        with self._lock:
            self.ending.set()
            threads = list(self._threads)
        for thread in threads:
            thread.join(END_S)


BACKGROUND = Background()
"""The background threads of this process."""
in_background = BACKGROUND.run
