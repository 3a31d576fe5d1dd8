"""Chunks of host memory, without a torch operation for each tensor, and a thread to verify them.

A segment's views are cut at the ends of its chunks. A chunk of one view is moved where it is, and
one of many is packed into staging memory.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.chunks import chunks, size_of
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of

Job = Callable[[], None]


def parts_of(segment: Segment, views: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """The memory of each chunk of a segment, in order; `views` are that of the segment."""
    rest = iter(views)
    view = memoryview(b"")
    for chunk in chunks(segment):
        parts: list[memoryview] = []
        missing = size_of(chunk)
        while missing:
            if not view:
                view = next(rest)
            part = view[:missing]
            view = view[len(part) :]
            missing -= len(part)
            if part:
                parts.append(part)
        yield parts


def in_place(parts: Sequence[memoryview]) -> Tensor | None:
    """The memory of a chunk as a tensor (uint8, 1-d) that keeps it alive, without a copy.

    None if the chunk has to be packed: it is in several places, or may not be written to.
    """
    if len(parts) != 1 or parts[0].readonly:
        return None
    return torch.frombuffer(parts[0], dtype=torch.uint8)


def pack(buffer: Tensor, parts: Iterable[memoryview]) -> None:
    """Copy the parts of a chunk into a buffer (uint8, 1-d), back to back."""
    room, at = memory_of(buffer), 0
    for part in parts:
        room[at : at + len(part)] = part
        at += len(part)


def unpack(buffer: Tensor, parts: Iterable[memoryview]) -> Iterator[memoryview]:
    """Copy a buffer's bytes to the parts of a chunk; yields each when it has its bytes."""
    room, at = memory_of(buffer), 0
    for part in parts:
        part[:] = room[at : at + len(part)]
        at += len(part)
        yield part


class Stage:
    """A pipeline stage: a thread that carries out one job while its owner prepares the next.

    Its methods belong to one thread. What a job raises, the next call raises.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            failure: Exception | None = None
            try:
                job()
            except Exception as error:  # noqa: BLE001 - raised on the owner's thread
                failure = error
            del job  # its memory is free for the next chunk
            self._done.put(failure)

    def put(self, job: Job) -> None:
        """Have a job done, after the one before has ended."""
        self.wait()
        self._busy = True
        self._jobs.put(job)

    def wait(self) -> None:
        """Wait for the job at hand."""
        if self._busy:
            failure = self._done.get()
            self._busy = False
            if failure is not None:
                raise failure

    def __enter__(self) -> Self:
        """Start the thread.

        Raises:
            TransferError: the process may have no more threads.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            detail = f"a thread that verifies cannot be started ({error}); raise pids.max"
            raise TransferError(Reason.TRANSFER_FAILED, detail) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Wait for the job at hand, and end the thread."""
        try:
            with contextlib.suppress(*() if kind is None else (Exception,)):
                self.wait()
        finally:
            self._jobs.put(None)
            self._thread.join()
