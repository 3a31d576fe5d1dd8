"""Fill a model on an asyncio event loop. `fill` leaves no thread or task behind."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from netloader.aio.reactor import AsyncioReactor
from netloader.config import Endpoint
from netloader.fsm.events import StopRequested
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.io.arguments import Weights
from netloader.io.client import ClientOptions, prepare
from netloader.io.clock import monotonic
from netloader.io.conversation import Conversation
from netloader.io.outcome import Outcome
from netloader.io.stopping import Stop


async def fill(
    model: Weights,
    sources: Sequence[Endpoint | str] | Endpoint | str,
    identity: Mapping[str, str] | Identity,
    options: ClientOptions | None = None,
    *,
    resume: Outcome | None = None,
) -> Outcome:
    """Fill a model from the first source that delivers.

    Arguments, outcome and errors are those of `netloader.io.fill`. The conversation is held by the
    running event loop; only long work has threads: looking at the model, name look-ups, receiving
    weights, hashing what `resume` calls verified. `options.report` is called on those threads.

    A task that is cancelled here tells the source, and ends within a second, when nothing writes
    into the model any more. What was received until then is lost for the caller: to keep it, end
    the call with `options.cancel` or `options.timeout_s`, which give an outcome.

    Raises:
        UnsafeError: also in the place of CancelledError, when an aborted transfer did not end.
    """
    filling = await asyncio.to_thread(prepare, model, sources, identity, options, resume)
    steps = filling.steps()
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
        if isinstance(step, Conversation):
            await _converse(step)
        elif isinstance(step, float):
            await _pause(filling.stop, step)
        else:
            await _call(filling.stop, step)


async def _converse(conversation: Conversation) -> None:
    """Run one session from connect to verdict in the running event loop."""
    reactor = AsyncioReactor(conversation.observer.trouble)
    dialled = conversation.begin(reactor)
    try:
        await reactor.until(lambda: dialled.link.closed)
    except asyncio.CancelledError:
        request = StopRequested(Reason.STOPPED, "cancelled by the client's caller")
        reactor.call(partial(dialled.link.handle, request))
        raise
    finally:
        dialled.close()
        reactor.close()
        await _insist(asyncio.to_thread(conversation.join))


async def _call(stop: Stop, work: Callable[[], None]) -> None:
    """Call a function on a thread; when this task is cancelled, it ends early."""
    call = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(call)
    except asyncio.CancelledError:
        stop.cancel()
        await _insist(call)
        raise


async def _insist(work: Awaitable[None]) -> None:
    """Wait for work that ends soon, even while this task is cancelled again and again."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


async def _pause(stop: Stop, seconds: float) -> None:
    """Wait, but not longer than the call may take."""
    end = monotonic() + seconds
    while stop.request() is None and (now := monotonic()) < end:
        await asyncio.sleep(min(end, stop.next_look(now)) - now)
