"""What a forked child must not keep or repeat. Law: everything here belongs to one process.

A child that is forked without exec has every descriptor of its parent, and every finalizer. With an
inherited listening socket the port stays taken after the parent closed it, clients connect and wait
for an answer that nobody gives; with an inherited connection a peer never hears that it was closed;
and a finalizer that runs twice takes away what the parent still uses. Threads do not exist in the
child, so nothing of ours works there anyway.

In the child the descriptors are closed, never shut down, and never taken out of a selector: the
connection and the epoll set are the parent's as well.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar
from weakref import WeakSet


class Closable(Protocol):
    """A socket or a selector."""

    def close(self) -> None:
        """Close the descriptor in this process."""


Kept = TypeVar("Kept", bound=Closable)


class Inheritance:
    """The descriptors of this process that no child is to keep. Any thread may use it."""

    def __init__(self) -> None:
        self._open: WeakSet[Closable] = WeakSet()
        self._lock = threading.RLock()
        """Held from before a descriptor exists until it is noted, and by whoever forks. Reentrant:
        the garbage collector may fork anywhere."""
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._forked,
        )

    @contextlib.contextmanager
    def atomic(self) -> Iterator[None]:
        """Where descriptors are made and noted: no fork happens in between.

        Nothing in here may block.
        """
        with self._lock:
            yield

    def note(self, resource: Kept) -> Kept:
        """Have `resource` closed in every child that is forked from now on; returns it."""
        self._open.add(resource)
        return resource

    def close(self, resource: Closable) -> None:
        """Close `resource`, so that no child is forked while only the kernel still knows it."""
        with self._lock:
            resource.close()

    def _forked(self) -> None:
        for resource in list(self._open):
            with contextlib.suppress(OSError):
                resource.close()
        self._open.clear()
        self._lock.release()  # the thread that forked has it, here as in the parent


INHERITANCE = Inheritance()
"""That of this process, which has one table of descriptors."""


def only_here(call: Callable[..., object]) -> Callable[..., None]:
    """`call`, for a finalizer or an exit handler: it does nothing in a child forked meanwhile."""
    owner = os.getpid()

    def guarded(*args: object) -> None:
        if os.getpid() == owner:
            call(*args)

    return guarded
