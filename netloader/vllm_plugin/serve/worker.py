"""All state that netloader keeps for one worker of vLLM, in one object.

vLLM's worker holds it (`patches.worker_methods.worker_of`): it ends with that worker, and several
workers in one process have one each. vLLM makes its loaders without naming their worker, so while a
method of the worker runs, a context variable says which one it is.
"""

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from netloader.fsm.identity import Identity, Role
from netloader.log import Logger
from netloader.metrics.page import open_page
from netloader.metrics.recorder import record
from netloader.tracing import trace_sessions
from netloader.vllm_plugin.serve.activity import Activity
from netloader.vllm_plugin.serve.after_reload import AfterReload
from netloader.vllm_plugin.serve.announcing import Place
from netloader.vllm_plugin.serve.by_model import ByModel
from netloader.vllm_plugin.serve.change import changing
from netloader.vllm_plugin.serve.harmless import harmless
from netloader.vllm_plugin.serve.kv_cache import KvCache
from netloader.vllm_plugin.serve.live_model import LiveModel
from netloader.vllm_plugin.serve.relay import RankRelay
from netloader.vllm_plugin.serve.saving import tell_not_saved
from netloader.vllm_plugin.serve.served_model import ServedModel
from netloader.vllm_plugin.serve.server import RankServer
from netloader.vllm_plugin.serve.warm_up import WarmUp

if TYPE_CHECKING:
    from netloader.vllm_plugin.serve.known import Known
    from netloader.vllm_plugin.serve.standing import Standing

NewServer: TypeAlias = Callable[[int], RankServer]
"""Makes the server of a rank."""

ASLEEP_S = 10.0
"""How long sleep waits until it is known what the kernels hold. Without that knowledge nothing is
offered when the instance is awake again."""


class Worker:
    """The servers of a worker, with the changes, reloads and warm-up that they wait for.

    vLLM calls its workers from one thread; servers have their own locks.
    """

    def __init__(self) -> None:
        self.activity = Activity()
        self.warm_up = WarmUp()
        self.after_reload = AfterReload()
        self.kv_cache = KvCache()
        self.known: Known | None = None
        """What others may take over from this rank; None where that is not wanted, or not yet."""
        self.loads: ByModel[object] = ByModel()
        """The records of `load.reload` for each model: vLLM makes a new loader to reload."""
        self.standby: Standing | None = None
        """The rank as it waits for its weights, of an instance that started with `STANDBY`."""
        self._servers: list[RankServer] = []
        self._metrics: set[int] = set()
        """Ports at which a page of metrics was opened, or could not be."""
        self._update: ExitStack | None = None
        """The update by a trainer that has begun and not ended; vLLM allows one at a time."""
        self._agreements: dict[str, Iterator[int]] = defaultdict(itertools.count)

    @property
    def servers(self) -> tuple[RankServer, ...]:
        """The servers that serve a model, or are to, the newest last."""
        return tuple(server for server in self._servers if server.in_use)

    @property
    def models(self) -> tuple[LiveModel, ...]:
        """All that is served, or would be if it were not being changed."""
        return tuple(live for server in self._servers for live in server.models)

    def open_metrics(self, first_port: int | None, rank: int, logger: Logger) -> None:
        """Make metrics and spans of this process's records, until the process ends.

        The page is at `first_port + rank`; there is none without a port. One that cannot be opened
        is logged once and costs nothing else.
        """
        with harmless():
            record()
            trace_sessions()
            port = first_port + rank if first_port else 0
            if port and port not in self._metrics:
                self._metrics.add(port)
                open_page("", port, logger)

    def next_agreement(self, role: str) -> int:
        """The number of this load of a role: ranks load in step, so it is the same on each."""
        return next(self._agreements[role])

    def expect(self, identity: Identity, rank: int, new_server: NewServer) -> None:
        """A model is going to be loaded, and served; it ends with `offer`, or with `abandon`."""
        with harmless():
            self._server_for(str(identity.role), rank, new_server).expect(identity)

    def offer(
        self, model: nn.Module, served: ServedModel, rank: int, new_server: NewServer
    ) -> None:
        """Serve a post-processed model, as soon as the engine of its device is warm."""
        offer = partial(self._open, served, rank, new_server)
        self.warm_up.offer(model, served.weights.device, offer)

    def _open(
        self, served: ServedModel, rank: int, new_server: NewServer, model: nn.Module
    ) -> None:
        server = self._server_for(served.role, rank, new_server)
        if not server.open(served, model):
            if served.saving is not None:
                tell_not_saved(server.logger)
            return

        def warm() -> None:
            served.usage.settle()
            if self.known is not None and served.role == Role.TARGET:
                server.offer_known(self.known, self.kv_cache.measured)
            if served.place is not None:
                server.announce(served.role, served.place)
            if served.saving is not None:
                server.save(served.role, served.saving)

        with harmless():
            self.warm_up.settle(model, warm)

    def _server_for(self, role: str, rank: int, new_server: NewServer) -> RankServer:
        """The newest server, unless it serves a model of this role already; else a new one.

        A process that loads a role again, as one with engine after engine does, has two models of
        the role for a while: each keeps its port, and each is fenced.
        """
        newest = self.servers[-1:]
        server = next((s for s in newest if s.rank == rank and role not in s.roles), None)
        if server is None:
            server = new_server(rank)
            self._servers = [*self.servers, server]
        return server

    def relay(
        self,
        role: str,
        facts: Mapping[str, str],
        rank: int,
        new_server: NewServer,
        place: Place | None = None,
    ) -> RankRelay | None:
        """Where a model is served while it is received; None when there is no port.

        It ends with `offer` of the model, or with `abandon`.
        """
        server = self._server_for(role, rank, new_server)
        relay = server.relay(role, facts)
        if place is not None:
            with harmless():
                server.announce(role, place)
        return relay

    def abandon(self, role: str) -> None:
        """Nothing is offered of a model of this role that was, or was to be, received."""
        for server in self._servers:
            server.abandon(role)

    # -- announced changes -----------------------------------------------------------------------

    def changing(self, roles: tuple[str, ...], why: str) -> AbstractContextManager[None]:
        """A change of the weights of some roles; see `change.changing`."""
        return changing((live for live in self.models if live.served.role in roles), why)

    def changing_part(self, module: nn.Module, why: str) -> AbstractContextManager[None]:
        """A change of the weights of the models that a module is a part of."""
        return changing((live for live in self.models if live.includes(module)), why)

    @property
    def all_changing(self) -> bool:
        """Whether all that is served is being changed, or nothing is served."""
        return all(live.changing for live in self.models)

    # -- an update by a trainer ------------------------------------------------------------------

    @property
    def updating(self) -> bool:
        """Whether an update has begun and not ended."""
        return self._update is not None

    def begin_update(self, roles: tuple[str, ...], why: str) -> None:
        """Offer nothing of some roles until the update ends."""
        self._update = ExitStack()
        self._update.enter_context(self.changing(roles, why))

    def end_update(self) -> None:
        """Offer what the weights are now."""
        stack, self._update = self._update, None
        if stack is not None:
            stack.close()

    @contextmanager
    def update_ends_on_error(self) -> Iterator[None]:
        """End the update when the block raises: then vLLM's is over as well."""
        try:
            yield
        except BaseException:
            stack, self._update = self._update, None
            if stack is not None:
                with suppress(BaseException):  # it raises again what it was told of
                    stack.__exit__(*sys.exc_info())
            raise

    # -- memory that is taken away ---------------------------------------------------------------

    def fence(self, why: str) -> None:
        """Offer nothing any more, and wait until no client reads."""
        for live in self.models:
            with harmless():
                live.fence(why)

    def shut_down(self, why: str) -> None:
        """As `fence`, when the instance ends, which is no warning."""
        for server in self._servers:
            with harmless():
                server.end_announcements()
        for live in self.models:
            with harmless():
                live.shut_down(why)

    def fence_for_sleep(self, why: str) -> None:
        """As `fence`, when it is known what the kernels hold, to be compared when awake again."""
        for live in self.models:
            with harmless():
                live.served.usage.wait(ASLEEP_S)
        self.fence(why)

    def resume(self) -> None:
        """Offer again what was fenced, if every byte is what it was."""
        for live in self.models:
            with harmless():
                live.resume()

    @contextmanager
    def off_the_device(self, why: str) -> Iterator[None]:
        """Offer nothing that is on a device inside the block: vLLM may capture graphs there.

        vllm-ascend destroys them when it falls asleep and captures them anew when the cache is
        awake, which may be long after the weights (`SleepWakeupManager`). See also `warm_up`.
        """
        away = [live for live in self.models if live.on_device]
        for live in away:
            with harmless():
                live.fence(why)
        try:
            yield
        finally:
            for live in away:
                with harmless():
                    live.resume_unchanged()


_CURRENT: ContextVar[Worker | None] = ContextVar("netloader_worker", default=None)


def current_worker() -> Worker | None:
    """The worker for which this thread runs, if that is known."""
    return _CURRENT.get()


def this_worker() -> Worker:
    """The worker for which this thread runs.

    Where no method of vLLM's worker is running, as in a program that calls a loader itself, the
    thread is a worker of its own from now on.
    """
    ours = _CURRENT.get()
    if ours is None:
        ours = Worker()
        _CURRENT.set(ours)
    return ours


@contextmanager
def running_for(ours: Worker) -> Iterator[Worker]:
    """Have `this_worker` answer with this worker inside the block, in this thread alone."""
    token = _CURRENT.set(ours)
    try:
        yield ours
    finally:
        _CURRENT.reset(token)
