"""Announced changes of weights: weights are not offered while they change."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from netloader.io.store.module import ModuleStore, WeightsError
from netloader.vllm_plugin.serve.harmless import harmless
from netloader.vllm_plugin.serve.served_model import KNOWN_S, Changed, watched
from netloader.vllm_plugin.serve.server import RankServer


@dataclass(slots=True)
class Change:
    """A change that is in progress: the server, and the `Changed` records by role."""

    server: RankServer
    stack: ExitStack = field(default_factory=ExitStack)
    seen: dict[str, Changed] = field(default_factory=dict)

    def begin(self, roles: Iterable[str], why: str) -> None:
        """Fence these roles, except those that are being changed already."""
        for role in roles:
            served = self.server.served(role)
            if served is not None and role not in self.server.changing:
                self.server.changing.add(role)
                self.stack.callback(self.server.changing.discard, role)
                served.usage.wait(KNOWN_S)
                self.server.fence(role, why)
                self.seen[role] = self.stack.enter_context(watched(served))

    def abandon(self) -> None:
        """End a change that failed: offer the weights again if every byte is as before."""
        self.stack.close()
        for role, changed in self.seen.items():
            changed.originals.clear()  # on their way, and perhaps never used
            changed.processed.clear()
            self._settle(role, changed, partial(self._resume, role))

    def end(self) -> None:
        """End the change: offer the new weights."""
        self.stack.close()
        for role, changed in self.seen.items():
            self._settle(role, changed, partial(self.server.renew, role))

    def _resume(self, role: str, weights: ModuleStore) -> None:
        del weights  # those on offer before: their digests are known
        self.server.resume(role)

    def _settle(self, role: str, changed: Changed, offer: Callable[[ModuleStore], None]) -> None:
        served = self.server.served(role)
        if served is None:
            return
        served.usage.resume()
        try:
            weights = served.renew(changed)
        except (WeightsError, InterruptedError) as error:
            self.server.lose(role, str(error))
        else:
            offer(weights)


@contextmanager
def changing(
    servers: Sequence[RankServer], roles: Callable[[RankServer], Iterable[str]], why: str
) -> Iterator[None]:
    """A block in which weights of some roles change: they are fenced, and offered afterwards.

    When the block fails and weights are half changed, they stay fenced until the next change.
    """
    changes = [Change(server) for server in servers]
    with harmless():
        for change in changes:
            change.begin(roles(change.server), why)
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
