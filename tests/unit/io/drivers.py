"""The same tests on every driver: `serve` and `fill` are those of the driver a test runs on.

A test that is to run on all has the fixture `driver`; any other one runs on threads.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, Final, Self, TypeVar, cast

from netloader import aio, io
from netloader.aio.reactor import AsyncioReactor
from netloader.io import Outcome, Server
from netloader.io.driver import Loop
from netloader.io.snapshot import ServerSnapshot

LONGEST_S = 120.0
T = TypeVar("T")
Serve = Callable[..., Server]
Fill = Callable[..., Outcome]
SERVE: Final[ContextVar[Serve]] = ContextVar("serve", default=io.serve)
LISTEN: Final[ContextVar[Serve]] = ContextVar("listen", default=io.listen)
FILL: Final[ContextVar[Fill]] = ContextVar("fill", default=io.fill)


def serve(*args: Any, **kw: Any) -> Server:
    """Serve as the driver of this test does; arguments as `netloader.io.serve`."""
    return SERVE.get()(*args, **kw)


def listen(*args: Any, **kw: Any) -> Server:
    """Open a server without a model, as the driver of this test does."""
    return LISTEN.get()(*args, **kw)


def fill(*args: Any, **kw: Any) -> Outcome:
    """Fill as the driver of this test does; arguments as `netloader.io.fill`."""
    return FILL.get()(*args, **kw)


class EventLoop:
    """An asyncio event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event-loop")
        self._thread.start()
        # Its pool begins with a thread, so that a test can count those that netloader leaves.
        self._loop.set_default_executor(ThreadPoolExecutor(1))
        self.run(asyncio.to_thread(int))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LONGEST_S)

    def close(self) -> None:
        """End the loop and its threads; every task must have ended."""
        assert self.run(self._tasks()) == set()
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONGEST_S)
        self._loop.close()

    async def _tasks(self) -> set[Any]:
        return asyncio.all_tasks() - {asyncio.current_task()}


class Served:
    """A server of `netloader.aio`, called from outside its event loop as any other."""

    def __init__(self, loop: EventLoop, server: aio.Server) -> None:
        self._loop = loop
        self._server = server
        self.endpoint = server.endpoint

    @property
    def _open(self) -> object:
        return self._server._server._open

    @property
    def receive(self) -> Callable[..., Any]:
        return self._server.receive

    @property
    def received(self) -> Callable[..., Any]:
        return self._server.received

    def publish(self, *args: Any, **kw: Any) -> None:
        self._loop.run(self._server.publish(*args, **kw))

    def withdraw(self, *args: Any, **kw: Any) -> None:
        self._server.withdraw(*args, **kw)

    def evict(self, *args: Any, **kw: Any) -> bool:
        return self._loop.run(self._server.evict(*args, **kw))

    @contextlib.contextmanager
    def fence(self, *args: Any, **kw: Any) -> Iterator[None]:
        fence = self._server.fence(*args, **kw)
        self._loop.run(fence.__aenter__())
        try:
            yield
        except BaseException as error:
            self._loop.run(fence.__aexit__(type(error), error, error.__traceback__))
            raise
        self._loop.run(fence.__aexit__(None, None, None))

    def wait_ready(self, timeout_s: float) -> bool:
        return self._loop.run(self._server.wait_ready(timeout_s))

    def snapshot(self) -> ServerSnapshot:
        return self._server.snapshot()

    def close(self) -> None:
        self._loop.run(self._server.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def on_threads() -> Iterator[None]:
    """The driver that has a thread for each server."""
    yield


@contextlib.contextmanager
def on_asyncio() -> Iterator[None]:
    """The driver in an asyncio event loop."""
    loop = EventLoop()

    def serve_there(*args: Any, **kw: Any) -> Server:
        return cast("Server", Served(loop, loop.run(aio.serve(*args, **kw))))

    def listen_there(*args: Any, **kw: Any) -> Server:
        return cast("Server", Served(loop, loop.run(aio.listen(*args, **kw))))

    def fill_there(*args: Any, **kw: Any) -> Outcome:
        return loop.run(aio.fill(*args, **kw))

    tokens = SERVE.set(serve_there), FILL.set(fill_there), LISTEN.set(listen_there)
    try:
        yield
    finally:
        SERVE.reset(tokens[0])
        FILL.reset(tokens[1])
        LISTEN.reset(tokens[2])
        loop.close()


DRIVERS: Final = {"threads": on_threads, "asyncio": on_asyncio}


class AsyncioLoop:
    """An asyncio event loop with the face of `netloader.io.driver.Loop`, for tests of loops."""

    def __init__(self, trouble: Callable[[Exception], None] | None = None) -> None:
        self.troubles: list[Exception] = []
        self._loop = asyncio.new_event_loop()
        self._reactor = self._loop.run_until_complete(self._made(trouble or self.troubles.append))
        self.members = self._reactor.members
        self.now, self.post, self.watch = (
            self._reactor.now,
            self._reactor.post,
            self._reactor.watch,
        )

    async def _made(self, trouble: Callable[[Exception], None]) -> AsyncioReactor:
        return AsyncioReactor(trouble)

    def run(self, until: Callable[[], bool]) -> None:
        """Turn until `until()` is true."""
        self._loop.run_until_complete(self._reactor.until(until))

    def close(self) -> None:
        """Free the event loop; no call of it may have failed unnoticed."""
        self._reactor.close()
        self._loop.close()
        assert self.troubles == []


LOOPS: Final[dict[str, Any]] = {"threads": Loop, "asyncio": AsyncioLoop}
