"""What only the asyncio driver has: tasks that are cancelled, and an event loop that goes on.

Everything else is tested by the tests of tests/unit/io, which run on both drivers.
"""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from netloader import ClientOptions, Endpoint, HostStore, ModuleStore, UnsafeError, aio
from netloader.fsm.manifest import Manifest, Segment
from netloader.fsm.messages import Begin, Hello, Reject, Request
from netloader.io import ServerOptions
from netloader.io.client_worker import ClientWorker
from netloader.io.clock import monotonic
from netloader.io.conversation import Conversation
from netloader.io.store.digests import MAX_WORKERS
from tests.support.sockets import blackhole
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    MIB,
    SOON_S,
    Peer,
    Source,
    asking,
    contents,
    eventually,
    module_of,
    our_threads,
    pretending,
    random,
    zoo,
)

PROMPT_S = 5.0
"""A cancelled task ends within a second; the rest is for a busy machine. Everything that could end
it otherwise takes PATIENT."""
PATIENT = replace(
    FAST, connect_s=60, handshake_s=60, validate_s=60, stall_s=60, transfer_base_s=90, queue_s=60
)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = our_threads(), descriptors()
    yield
    assert eventually(lambda: our_threads() <= before[0] and descriptors() <= before[1])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


def large(seed: int) -> nn.Module:
    return module_of(w=random(8 * MIB, seed=seed, dtype=torch.uint8))


@asynccontextmanager
async def serving(model: nn.Module, **options: Any) -> AsyncIterator[aio.Server]:
    chosen = ServerOptions(**{"deadlines": FAST, "segment_bytes": MIB, **options})
    async with await aio.serve(model, IDENTITY, options=chosen) as server:
        yield server


async def true(condition: Callable[[], object]) -> None:
    """Wait until something is true."""
    assert await asyncio.to_thread(eventually, condition)


def dialling() -> bool:
    """Whether a client connects."""
    return "netloader-dial" in our_threads()


async def cancelled(filling: Coroutine[Any, Any, object], when: Awaitable[object]) -> None:
    """Cancel a fill at some point: it ends soon, and as cancelled."""
    task = asyncio.ensure_future(filling)
    await when
    start = monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert monotonic() - start < PROMPT_S


def patient(**options: Any) -> ClientOptions:
    return asking(**{"deadlines": PATIENT, **options})


# -- cancelling ----------------------------------------------------------------------------------


def test_a_fill_is_cancelled_while_it_connects() -> None:
    with blackhole("127.0.0.1") as nowhere:
        asyncio.run(cancelled(aio.fill(zoo(1), [nowhere], IDENTITY, patient()), true(dialling)))


def test_a_fill_is_cancelled_in_the_handshake_and_tells_the_source() -> None:
    said: list[object] = []
    greeted = threading.Event()

    def script(peer: Peer) -> None:
        said.append(peer.hear())
        greeted.set()
        said.append(peer.hear())

    with pretending(script) as endpoint:
        filling = aio.fill(zoo(1), [endpoint], IDENTITY, patient())
        asyncio.run(cancelled(filling, asyncio.to_thread(greeted.wait, SOON_S)))

    assert isinstance(said[0], Hello)
    assert said[1] == Reject("stopped", "cancelled by the client's caller")


def test_a_fill_is_cancelled_while_it_waits_for_a_busy_source() -> None:
    asked = threading.Event()

    def script(peer: Peer) -> None:
        peer.hear()
        peer.say(Reject("busy", "full", retry_after_s=30))
        peer.hear()
        asked.set()

    with pretending(script) as endpoint:
        filling = aio.fill(zoo(1), [endpoint], IDENTITY, patient())
        asyncio.run(cancelled(filling, asyncio.to_thread(asked.wait, SOON_S)))


def test_a_cancelled_transfer_writes_no_more_and_the_model_can_be_filled_again() -> None:
    # The source has begun, and sends nothing: the receiver waits in its socket.
    source, target = Source(zoo(1), 1 << 16), zoo(2)
    begun = threading.Event()

    def script(peer: Peer) -> None:
        first = peer.hear()
        if isinstance(first, Hello):
            peer.opens(source.offer)
            assert isinstance(peer.hear(), Request)
            peer.say(Begin())
            begun.set()
        peer.hear()

    async def run() -> None:
        filling = aio.fill(target, [endpoint], IDENTITY, patient(lanes=1))
        await cancelled(filling, asyncio.to_thread(begun.wait, SOON_S))
        async with serving(zoo(1)) as server:
            assert (await aio.fill(target, [server.endpoint], IDENTITY, asking())).ok

    with pretending(script) as endpoint:
        asyncio.run(run())
    assert contents(target) == contents(zoo(1))


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_the_server_of_a_cancelled_client_is_free_for_the_next(transport: str) -> None:
    target = large(2)

    async def run() -> None:
        loop, moving = asyncio.get_running_loop(), asyncio.Event()
        seen = patient(
            transport=transport,
            lanes=1,
            report=lambda done, total: loop.call_soon_threadsafe(moving.set),
        )
        async with serving(large(1), max_clients=1, segment_bytes=1 << 16) as server:
            await cancelled_or_done(aio.fill(target, [server.endpoint], IDENTITY, seen), moving)
            again = asking(transport, deadlines=replace(FAST, queue_s=30))
            assert (await aio.fill(target, [server.endpoint], IDENTITY, again)).ok

    asyncio.run(run())
    assert contents(target) == contents(large(1))


async def cancelled_or_done(filling: Coroutine[Any, Any, Any], moving: asyncio.Event) -> None:
    """Cancel it when the first bytes have come, unless it is faster."""
    task = asyncio.ensure_future(filling)
    await asyncio.wait_for(moving.wait(), SOON_S)
    task.cancel()
    with suppress(asyncio.CancelledError):
        assert (await task).ok


def test_a_second_cancellation_does_not_give_the_model_back_while_it_is_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ending, ended = threading.Event(), threading.Event()
    end = ClientWorker.end

    def slow(worker: ClientWorker) -> None:
        ending.set()
        assert ended.wait(SOON_S)
        end(worker)

    monkeypatch.setattr(ClientWorker, "end", slow)
    source = Source(zoo(1), 1 << 16)

    async def run() -> None:
        task = asyncio.ensure_future(aio.fill(zoo(1), [endpoint], IDENTITY, patient(lanes=1)))
        await asyncio.to_thread(asked.wait, SOON_S)
        task.cancel()
        await asyncio.to_thread(ending.wait, SOON_S)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        ended.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asked = threading.Event()

    def script(peer: Peer) -> None:
        if isinstance(peer.hear(), Hello):
            peer.opens(source.offer)
            assert isinstance(peer.hear(), Request)
            asked.set()
        peer.hear()

    with pretending(script) as endpoint:
        asyncio.run(run())


class Slow(HostStore):
    """Memory that is read when the test says so."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.reads, self.reading, self.free = 0, threading.Event(), threading.Event()

    def views(self, segment: Segment) -> Iterator[memoryview]:
        self.reads += 1
        self.reading.set()
        assert self.free.wait(SOON_S)
        return super().views(segment)


def test_a_fill_that_is_cancelled_while_it_hashes_what_it_resumes_ends_when_that_has() -> None:
    async def run() -> None:
        async with serving(large(1), segment_bytes=64 * KIB) as server:
            store = Slow(ModuleStore.of(large(1)).manifest)
            first = await aio.fill(store, server.endpoint, IDENTITY, asking())
            again = aio.fill(store, server.endpoint, IDENTITY, asking(), resume=first)
            task = asyncio.ensure_future(again)
            await asyncio.to_thread(store.reading.wait, SOON_S)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done(), "it still reads the store"
            store.free.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert store.reads <= MAX_WORKERS < len(first.progress.verified)

    asyncio.run(run())


def test_unsafe_error_replaces_the_cancellation_when_a_transfer_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(conversation: Conversation) -> None:
        raise UnsafeError("still running")

    monkeypatch.setattr(Conversation, "join", never)

    async def run() -> None:
        task = asyncio.ensure_future(aio.fill(zoo(1), [endpoint], IDENTITY, patient()))
        await true(dialling)
        task.cancel()
        with pytest.raises(UnsafeError):
            await task

    with blackhole("127.0.0.1") as endpoint:
        asyncio.run(run())


def test_a_time_limit_of_asyncio_ends_a_fill() -> None:
    async def run(endpoint: Endpoint) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await aio.fill(zoo(1), [endpoint], IDENTITY, patient())

    with pretending(lambda peer: peer.hear() and peer.hear()) as endpoint:
        start = monotonic()
        asyncio.run(run(endpoint))
        assert monotonic() - start < PROMPT_S


# -- the event loop ------------------------------------------------------------------------------


def test_many_clients_and_servers_share_one_event_loop() -> None:
    targets = [zoo(10 + i) for i in range(5)]

    async def run() -> None:
        async with serving(zoo(1), max_clients=9) as one, serving(zoo(1), max_clients=9) as two:
            ports = [one.endpoint, two.endpoint]
            fills = (
                aio.fill(t, ports[:: 1 - 2 * (i % 2)], IDENTITY, asking())
                for i, t in enumerate(targets)
            )
            assert all(outcome.ok for outcome in await asyncio.gather(*fills))

    asyncio.run(run())
    assert all(contents(target) == contents(zoo(1)) for target in targets)


def test_nothing_blocks_the_event_loop() -> None:
    # A source that says nothing, then a whole transfer: the loop turns all the time.
    async def run() -> tuple[float, float]:
        gap, turning = 0.0, True

        async def turn() -> None:
            nonlocal gap
            while turning:
                before = monotonic()
                await asyncio.sleep(0.005)
                gap = max(gap, monotonic() - before)

        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with serving(large(1)) as server:
                sources = [Endpoint(*silent.getsockname()), server.endpoint]
                options = asking(deadlines=replace(FAST, connect_s=30, handshake_s=2.0))
                turner, start = asyncio.ensure_future(turn()), monotonic()
                assert (await aio.fill(large(2), sources, IDENTITY, options)).ok
                took, turning = monotonic() - start, False
                await turner
        return gap, took

    gap, took = asyncio.run(run())
    assert 2.0 <= took < SOON_S
    assert gap < 1.0


def test_a_server_that_is_closed_by_a_cancelled_task_leaves_nothing() -> None:
    async def run() -> None:
        server = await aio.serve(zoo(1), IDENTITY, options=ServerOptions(deadlines=FAST))
        peer = await asyncio.to_thread(Peer.call, server.endpoint)
        with peer:
            closing = asyncio.ensure_future(server.close())
            assert isinstance(await asyncio.to_thread(peer.hear), Reject)
            assert not closing.done()  # the peer may take a moment to close its end
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        await server.close()

    asyncio.run(run())


def test_a_closed_server_takes_no_more_models() -> None:
    async def run() -> None:
        async with serving(zoo(1)) as server:
            pass
        await server.publish(zoo(1), IDENTITY)

    with pytest.raises(Exception, match="closed server"):
        asyncio.run(run())
