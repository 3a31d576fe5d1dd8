"""Resources that a forked child must not keep. Everything here belongs to one process.

A child that is forked without exec inherits every descriptor and every finalizer of its parent. If
it kept a listening socket, the port would stay in use after the parent closed it, and clients would
connect and never get an answer. If it kept a connection, the peer would not notice that the parent
had closed it. A finalizer that runs in both processes would remove what the parent still uses. The
child has none of the parent's threads, so netloader cannot run there.

In the child, descriptors are closed, but never shut down and never removed from a selector: the
parent still uses the connection and the epoll set.
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
    """The descriptors of this process that no child may keep. Safe to use from any thread."""

    def __init__(self) -> None:
        self._open: WeakSet[Closable] = WeakSet()
        self._lock = threading.RLock()
        """Held from before a descriptor is created until it is noted, and by a thread that forks.
        Reentrant, because a finalizer that the garbage collector runs may fork at any point."""
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._forked,
        )

    @contextlib.contextmanager
    def atomic(self) -> Iterator[None]:
        """Create a descriptor and note it inside this block: no fork happens in between.

        The block must not do anything that waits.
        """
        with self._lock:
            yield

    def note(self, resource: Kept) -> Kept:
        """Have `resource` closed in every child that is forked from now on; returns it."""
        self._open.add(resource)
        return resource

    def close(self, resource: Closable) -> None:
        """Close `resource`; no fork happens while the descriptor is being closed."""
        with self._lock:
            resource.close()

    def _forked(self) -> None:
        for resource in list(self._open):
            with contextlib.suppress(OSError):
                resource.close()
        self._open.clear()
        self._lock.release()  # held by the thread that forked, in both processes


INHERITANCE = Inheritance()
"""One for the process, as there is one table of descriptors."""


def only_here(call: Callable[..., object]) -> Callable[..., None]:
    """Wrap `call`, a finalizer or exit handler, so that it does nothing in a forked child."""
    owner = os.getpid()

    def guarded(*args: object) -> None:
        if os.getpid() == owner:
            call(*args)

    return guarded
