"""Serve a model's weights on an asyncio event loop. `close` frees everything."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

from netloader import io
from netloader.aio.reactor import AsyncioReactor
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Offer
from netloader.io.arguments import Weights
from netloader.io.catalog import Catalog
from netloader.io.listener import bind, endpoint_of, tell, trouble
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions
from netloader.io.reception import Reception
from netloader.io.server import FENCE_S, check_listening, prepare
from netloader.io.snapshot import ServerSnapshot
from netloader.io.store.base import Store


class AsyncioListener:
    """Serves what is in a catalog on one socket, in the running event loop.

    Raises:
        OSError: the process is out of file descriptors. The socket is closed then.
    """

    def __init__(self, sock: socket.socket, catalog: Catalog, options: ServerOptions) -> None:
        self.endpoint = endpoint_of(sock)
        self._logger = logger = options.logger
        self._process = os.getpid()
        self._reactor = AsyncioReactor(partial(trouble, logger))
        try:
            self._reception = Reception(self._reactor, sock, catalog, options)
        except OSError:
            self._reactor.close()
            sock.close()
            raise
        tell(logger, "netloader.listener.started", self.endpoint)

    def add(self, sock: socket.socket) -> None:
        """Accept at one more socket, until `remove` or `close`; from any thread."""
        self._reactor.post(partial(self._reception.add, sock))

    def remove(self, sock: socket.socket) -> None:
        """Accept no more at a socket that was added; from any thread."""
        self._reactor.post(partial(self._reception.remove, sock))

    def close(self) -> None:
        """Accept no more, and end every session; `wait_closed` waits until they are closed."""
        if os.getpid() == self._process:
            self._reactor.call(self._reception.stop)

    async def wait_closed(self) -> None:
        """Wait until nothing is left; a few seconds at most."""
        if os.getpid() != self._process:
            return
        try:
            await self._reactor.until(lambda: self._reception.over)
        finally:
            self._reception.close()
            self._reactor.close()
            tell(self._logger, "netloader.listener.stopped", self.endpoint)


class Server:
    """A running server; an asynchronous context manager, for the loop it was started in.

    `endpoint` is what the socket is bound to, as with `netloader.io.Server`.
    """

    def __init__(self, server: io.Server, listener: AsyncioListener) -> None:
        self.endpoint = listener.endpoint
        self._server = server
        self._listener: AsyncioListener | None = listener

    async def publish(
        self,
        model: Weights,
        identity: Mapping[str, str] | Identity,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Serve one more model, or another in the place of the one with the same `role`.

        Arguments and errors are those of `netloader.io.Server.publish`. It looks at the model on a
        thread.
        """
        await asyncio.to_thread(self._server.publish, model, identity, facts)

    def receive(self, store: Store, identity: Identity, offer: Offer) -> PublishedModel:
        """As `netloader.io.Server.receive`; from any thread."""
        return self._server.receive(store, identity, offer)

    def received(self, published: PublishedModel, weights: Weights, identity: Identity) -> None:
        """As `netloader.io.Server.received`; from any thread."""
        self._server.received(published, weights, identity)

    def withdraw(self, role: str | None, why: str) -> None:
        """Offer nothing in a role any more, as `netloader.io.Server.withdraw`."""
        self._server.withdraw(role, why)

    async def evict(self, role: str | None, why: str, timeout_s: float = FENCE_S) -> bool:
        """Offer nothing in a role any more, and end its sessions, as `netloader.io.Server.evict`.

        A thread waits until nothing reads the weights; a task that is cancelled returns at once.
        """
        return await asyncio.to_thread(self._server.evict, role, why, timeout_s)

    @asynccontextmanager
    async def fence(
        self, role: str | None, why: str, timeout_s: float = FENCE_S
    ) -> AsyncIterator[None]:
        """A block in which the weights of a role may be changed, as `netloader.io.Server.fence`.

        A thread waits until nothing reads them. A task that is cancelled meanwhile still waits for
        that thread, at most `timeout_s` seconds, so that no fence stays open.
        """
        fence = self._server.fence(role, why, timeout_s)
        entering = asyncio.ensure_future(asyncio.to_thread(fence.__enter__))
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            await asyncio.wait((entering,))
            if entering.exception() is None:
                await asyncio.to_thread(fence.__exit__, None, None, None)
            raise
        try:
            yield
        except BaseException as error:
            fence.__exit__(type(error), error, error.__traceback__)  # does not wait
            raise
        await asyncio.to_thread(fence.__exit__, None, None, None)

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait until no client would have to wait for digests; False when that takes longer.

        As `netloader.io.Server.wait_ready`. A task that is cancelled returns at once.
        """
        return await asyncio.to_thread(self._server.wait_ready, timeout_s)

    def snapshot(self) -> ServerSnapshot:
        """What is served now, as `netloader.io.Server.snapshot`."""
        return self._server.snapshot()

    async def close(self) -> None:
        """Turn clients away and free the port, the threads and the model. Idempotent.

        A task that is cancelled here leaves nothing behind either: connections are then closed
        without a last message.
        """
        if self._listener is not None:
            listener, self._listener = self._listener, None
            self._server.close()
            await listener.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()


async def listen(
    host: str = "127.0.0.1", port: int = 0, options: ServerOptions | None = None
) -> Server:
    """Open a server that has nothing to serve yet, in the running event loop.

    As `netloader.io.listen`.
    """
    chosen = check_listening(host, port, options)
    catalog = Catalog()
    listener = AsyncioListener(bind(host, port), catalog, chosen)
    return Server(io.Server(listener, catalog, chosen), listener)


async def serve(
    model: Weights,
    identity: Mapping[str, str] | Identity,
    host: str = "127.0.0.1",
    port: int = 0,
    options: ServerOptions | None = None,
) -> Server:
    """Serve a model, in the running event loop.

    Arguments, behaviour and errors are those of `netloader.io.serve`. Connections are served by the
    loop; only long work has threads: looking at the model, digests, sending weights.
    """
    prepared = await asyncio.to_thread(prepare, model, identity, host, port, options)
    listener = AsyncioListener(bind(host, port), prepared.catalog, prepared.options)
    return Server(prepared.served(listener), listener)
