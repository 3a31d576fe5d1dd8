"""Pages for memory that nobody has written to, made ahead of what is received (Linux 5.14).

Such memory has no pages yet. The kernel makes each when it is written to first: 4 KiB at a time, in
the middle of a receive. One thread that asks for them in steps of 16 MiB takes that from the
receiving threads. No byte changes, and a kernel that cannot do it is left alone.
"""

import bisect
import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

from netloader.fsm.manifest import Extent
from netloader.io.failure import TransferError
from netloader.io.memory import address_of, mappings
from netloader.io.store.base import InHostMemory, Store

POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (madvise(2)): make writable pages as a write would, without writing."""
STEP_BYTES = 16 << 20
"""Bytes per system call, which takes 5 to 10 ms: so long may `end` take."""
AHEAD_BYTES = 256 << 20
"""How far ahead of the bytes that are verified. More than all lanes have under way, and little
enough to be taken in vain when the sources fail."""
LOOK_S = 0.01
"""How often it looks whether it may go on. The fastest receiver moves 100 MiB meanwhile."""
LEAST_BYTES = STEP_BYTES
"""Less than this is received before a thread has begun."""
LEAST_MEAN_BYTES = 32 << 10
"""Where tensors are smaller than this on average, finding their pages costs more than it helps."""

Madvise: TypeAlias = Callable[[int, int, int], int]
"""madvise(2): an address, a length and an advice; not 0 when it failed."""


def system_madvise() -> Madvise:
    """That of the C library."""
    call = ctypes.CDLL(None).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call


class Populating:
    """Populates the host memory of one store in the order of its manifest, while it is filled.

    `received` tells how many bytes have been verified. `begin` and `end` may be called from any
    thread; `begin` after `end` does nothing. Memory is reached through `InHostMemory.host_view`, so
    a store that was given up ends this, and what is being populated is kept alive.
    """

    def __init__(
        self, store: Store, received: Callable[[], int], madvise: Madvise | None = None
    ) -> None:
        self._store = store
        self._received = received
        self._madvise = madvise
        self._over = threading.Event()
        self._begun = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start, unless that was done. Best effort: without a thread nothing is populated."""
        store, manifest = self._store, self._store.manifest
        if not isinstance(store, InHostMemory) or self._over.is_set():
            return
        if manifest.nbytes < max(LEAST_BYTES, LEAST_MEAN_BYTES * len(manifest.payload)):
            return
        if not self._begun.acquire(blocking=False):
            return
        work = threading.Thread(
            target=self._run, args=(store,), name="netloader-populate", daemon=True
        )
        try:
            work.start()
        except RuntimeError:  # the process may have no more threads
            return
        self._thread = work

    def end(self) -> None:
        """Stop, and wait for the step under way. Idempotent."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, store: InHostMemory) -> None:
        try:
            madvise = self._madvise or system_madvise()
            begins, ends = mappings(lambda rights, inode: "w" in rights and inode == "0")
            done = 0
            for run in self._runs(store):
                begin, end = within(address_of(run[0]), address_of(run[-1]) + len(run[-1]))
                place = bisect.bisect_right(begins, begin) - 1
                anonymous = place >= 0 and end <= ends[place]
                while done - self._received() > AHEAD_BYTES and not self._over.wait(LOOK_S):
                    pass
                if self._over.is_set():
                    return
                if begin < end and anonymous and madvise(begin, end - begin, POPULATE_WRITE):
                    return
                done += sum(map(len, run))
        except (TransferError, OSError, AttributeError):
            return  # the memory was freed, or the C library has no such call

    def _runs(self, store: InHostMemory) -> Iterator[list[memoryview]]:
        """Neighbours in memory, in the order of the manifest, up to a step together."""
        run: list[memoryview] = []
        end = nbytes = 0
        for view in self._views(store):
            address = address_of(view)
            apart = not 0 <= address - end < mmap.PAGESIZE
            if run and (apart or nbytes + len(view) > STEP_BYTES):
                yield run
                run, nbytes = [], 0
            run.append(view)
            end, nbytes = address + len(view), nbytes + len(view)
        if run:
            yield run

    def _views(self, store: InHostMemory) -> Iterator[memoryview]:
        manifest = self._store.manifest
        for index in manifest.payload:
            nbytes = manifest.tensors[index].nbytes
            for start in range(0, nbytes, STEP_BYTES):
                length = min(STEP_BYTES, nbytes - start)
                view = store.host_view(Extent(index, start, length))
                if view is None:
                    break
                yield view


def within(begin: int, end: int) -> tuple[int, int]:
    """The whole pages between two addresses."""
    return -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
