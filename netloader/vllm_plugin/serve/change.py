"""Announced changes of weights: weights are not offered while they change."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from netloader.io.store.module import ModuleStore, WeightsError
from netloader.vllm_plugin.serve.harmless import harmless
from netloader.vllm_plugin.serve.live_model import LiveModel
from netloader.vllm_plugin.serve.served_model import KNOWN_S, Changed, watched


class Change:
    """A change of one model that is in progress, and what was seen of it."""

    def __init__(self, live: LiveModel) -> None:
        self._live = live
        self._stack = ExitStack()
        self._seen: Changed | None = None

    def begin(self, why: str) -> None:
        """Fence the model, unless it is being changed already."""
        if self._live.changing:
            return
        self._live.changing = True
        self._stack.callback(setattr, self._live, "changing", False)
        self._live.served.usage.wait(KNOWN_S)
        self._live.fence(why)
        self._seen = self._stack.enter_context(watched(self._live.served))

    def abandon(self) -> None:
        """End a change that failed: offer the weights again if every byte is as before."""
        self._stack.close()
        if self._seen is not None:
            self._seen.originals.clear()  # on their way, and perhaps never used
            self._seen.processed.clear()
            self._settle(self._seen, lambda _: self._live.resume())

    def end(self) -> None:
        """End the change: offer the new weights."""
        self._stack.close()
        if self._seen is not None:
            self._settle(self._seen, self._live.renew)

    def _settle(self, seen: Changed, offer: Callable[[ModuleStore], None]) -> None:
        served = self._live.served
        if self._live.retired:
            return
        served.usage.resume()
        try:
            weights = served.renew(seen)
        except (WeightsError, InterruptedError) as error:
            self._live.lose(str(error))
        else:
            offer(weights)


@contextmanager
def changing(models: Iterable[LiveModel], why: str) -> Iterator[None]:
    """A block in which weights of some models change: they are fenced, and offered afterwards.

    When the block fails and weights are half changed, they stay fenced until the next change.
    """
    changes: list[Change] = []
    with harmless():
        changes += map(Change, models)
    for change in changes:
        with harmless():
            change.begin(why)
    try:
        yield
    except BaseException:
        for change in changes:
            with harmless():
                change.abandon()
        raise
    for change in changes:
        with harmless():
            change.end()
