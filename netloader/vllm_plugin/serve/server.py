"""Serve what this rank has loaded; no error here reaches the engine.

A server has one listener, one address, and in its catalog the weights of the target and of the
draft.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from torch import nn

from netloader.errors import NetloaderError
from netloader.io.background import in_background
from netloader.io.catalog import Catalog
from netloader.io.clock import monotonic
from netloader.io.device import CPU
from netloader.io.forks import only_here
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.module import ModuleStore
from netloader.log import emit, get_logger
from netloader.vllm_plugin.identity import ranks
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.serve import address
from netloader.vllm_plugin.serve.change_monitor import ChangeMonitor, NotOnOfferError
from netloader.vllm_plugin.serve.port import OpenPort, PortChoice, tell_failed
from netloader.vllm_plugin.serve.refusal import refuse
from netloader.vllm_plugin.serve.served_model import ServedModel

EVICT_S = 10.0
"""How long a change of the weights waits, beyond the stall deadline, for clients to be gone."""
RESTART = "reload the weights from a checkpoint, or restart this instance, to serve again"
ANNOUNCE = (
    "change weights with vLLM's reload_weights or its update methods, as docs/operate/vllm.md says"
)


class RankServer:
    """The models that a rank serves at one port. Safe to use from any thread."""

    def __init__(self, rank: int, choice: PortChoice, options: ServerOptions) -> None:
        self.rank = rank
        self._choice = choice
        self._logger = get_logger("server", LOG_BASE, **ranks.named(rank))
        self._options = replace(options, logger=self._logger)
        self._served: dict[str, ServedModel] = {}
        self._owners: dict[str, object] = {}
        self._fenced: set[str] = set()
        self._lost: dict[str, str] = {}
        self._proven: set[str] = set()
        self._models: dict[str, weakref.ref[nn.Module]] = {}
        self._monitor = ChangeMonitor(self)
        self.changing: set[str] = set()
        """The roles of which a method that is watched changes the weights now."""
        self._returning: dict[str, PublishedModel] = {}
        self._known: weakref.WeakSet[PublishedModel] = weakref.WeakSet()
        """All that was published: its sessions keep what was replaced, and go on reading it."""
        self._catalog: Catalog | None = None
        self._port: OpenPort | None = None
        self._lock = threading.RLock()

    @property
    def roles(self) -> tuple[str, ...]:
        """What is served, or would be if it were not being changed."""
        return tuple(self._served)

    def on_devices(self) -> tuple[str, ...]:
        """The roles whose weights are on a device, and may be read there now."""
        with self._lock:
            away = self._fenced - self._returning.keys()
            here = [role for role in self._served if role not in away]
            return tuple(role for role in here if self._served[role].weights.device != CPU)

    def roles_of(self, module: nn.Module) -> list[str]:
        """The roles of the models that a module is a part of."""
        models = ((role, reference()) for role, reference in self._models.items())
        return [r for r, m in models if m and any(part is module for part in m.modules())]

    def served(self, role: str) -> ServedModel | None:
        """What is on offer in this role."""
        return self._served.get(role)

    def open(self, served: ServedModel, model: nn.Module) -> bool:
        """Serve some weights until their model is gone.

        Returns:
            False when that cannot be done; the log says why.
        """
        with self._guarded():
            published = self._published(served, served.weights)
            published.seal(served.digests)
            with self._lock:
                self._served[served.role] = served
                if self._put(published):
                    owner = self._owners[served.role] = object()
                    weakref.finalize(model, only_here(self._gone), served.role, owner)
                    self._models[served.role] = weakref.ref(model)
                    self._tell(served, published)
                    self._monitor.keep(published)
                    return True
        return False

    def fence(self, role: str, why: str) -> None:
        """Offer nothing of a role, and wait until no client reads its memory."""
        with self._lock:
            shown = (self._on_catalog(role), self._returning.pop(role, None))
            known = [published for published in self._known if role_of(published) == role]
            offered = any(p is not None and not p.withdrawn for p in shown)
            port = self._port
            self._fenced.add(role)
        end = monotonic() + self._options.deadlines.stall_s + EVICT_S
        for published in known:
            with self._guarded():
                self._evict(port, published, why, end)
        if offered and port is not None:
            fields = {"netloader.role": role, "netloader.detail": why}
            emit(self._logger, "netloader.server.withdrawn", fields)
        served = self._served.get(role)
        if served is not None:
            served.usage.pause()

    def _evict(
        self, port: OpenPort | None, published: PublishedModel, why: str, end: float
    ) -> None:
        """Wait until `end` for the last reader of a published model, be it replaced or not."""
        if port is None:
            return
        timeout_s = max(0.0, end - monotonic())
        if not port.listener.evict(published, why, timeout_s):
            detail = f"clients still read {timeout_s:g} s after: {why}"
            emit(self._logger, "netloader.driver.error", {"netloader.detail": detail})

    def renew(self, role: str, weights: ModuleStore) -> None:
        """Offer weights that have changed; their digests are computed in the background."""
        with self._guarded(), self._lock:
            served = self._served[role] = replace(self._served[role], weights=weights, digests=())
            published = self._published(served, weights)
            published.seal_quietly()
            if self._put(published):
                self._tell(served, published)
                self._monitor.keep(published)

    def lose(self, role: str, why: str) -> None:
        """What there was to offer of a role is not known any more, until it is renewed."""
        with self._lock:
            self._lost[role] = why
            self._say(role)
        refuse(self._logger, why, RESTART)

    def _say(self, role: str) -> None:
        """Have clients told why nothing is offered of a role: the reason of now."""
        here = self._on_catalog(role)
        if here is not None and role in self._lost:
            here.withdraw(f"{self._lost[role]}; {RESTART}")

    def resume(self, role: str) -> None:
        """Offer again what was fenced, if every byte is still what it was."""
        with self._guarded(), self._lock:
            fenced = self._on_catalog(role)
            if fenced is None or role not in self._fenced:
                return
            served = self._served[role]
            served.usage.resume()
            if role in self._lost:
                self._say(role)
                return
            digests = fenced.digests(0)
            if not digests:  # then it is not known what the bytes were
                self.lose(role, "the weights were taken away before their digests were known")
                return
            published = self._returning[role] = self._published(served, served.weights)
            published.seal(digests)
            self._check(published, partial(self._put_back, served, published))

    def resume_unchanged(self, role: str) -> None:
        """Offer again what was fenced for a moment in which weights do not change."""
        with self._guarded(), self._lock:
            fenced = self._on_catalog(role)
            served = self._served.get(role)
            if fenced is None or served is None:
                return
            served.usage.resume()
            if not served.usage.complete:
                served.usage.begin()
            if not fenced.digests(0):
                self.renew(role, served.weights)
            else:
                self.resume(role)

    def _check(self, published: PublishedModel, work: Callable[[], None]) -> None:
        """Look at every byte in the background; what cannot be looked at is not offered."""
        in_background("netloader-audit", work, published.unproven, self._logger)

    def _put_back(self, served: ServedModel, published: PublishedModel) -> None:
        """Put what was fenced back into the catalog, once every byte was looked at."""
        published.audit()
        why = published.withdrawn or served.usage.awake()
        with self._guarded(), self._lock:
            if self._returning.get(served.role) is not published:  # fenced again meanwhile
                return
            del self._returning[served.role]
            if why:
                self.lose(served.role, f"not all was the same after it was away: {why}")
            elif self._put(published):
                self._tell(served, published)
                self._monitor.keep(published)

    # -- changes without an announcement --------------------------------------------------------

    def replace(
        self, published: PublishedModel, why: str
    ) -> tuple[ServedModel, PublishedModel | None]:
        """Offer something not known yet in the place of weights that were written meanwhile.

        Without it, if post-processing was not yet seen to leave these weights alone: then what is
        there now need not be what a client has to load.

        Raises:
            NotOnOfferError: they were fenced or replaced meanwhile.
        """
        role = role_of(published)
        with self._lock:
            served = self._served.get(role)
            if self._on_catalog(role) is not published or role in self._fenced or served is None:
                raise NotOnOfferError
            fields = {
                "netloader.role": role,
                "netloader.detail": why,
                "netloader.remedy": ANNOUNCE,
            }
            emit(self._logger, "netloader.server.withdrawn", fields)
            self._lost[role] = why
            if role not in self._proven or self._catalog is None:
                self._say(role)
                return served, None
            successor = self._published(served, served.weights)
            self._catalog.put(successor)
            return served, successor

    def look(self, served: ServedModel, weights: ModuleStore) -> tuple[str, ...]:
        """The digests of weights that are not on offer yet; none when they are taken away."""
        looked_at = self._published(served, weights)
        with self._lock:
            if served.role in self._fenced:
                return ()
            self._returning[served.role] = looked_at
        looked_at.seal_quietly().join()
        with self._lock:
            if self._returning.get(served.role) is looked_at:
                del self._returning[served.role]
        return looked_at.digests(0) or ()

    def confirm(
        self, served: ServedModel, successor: PublishedModel, digests: tuple[str, ...]
    ) -> None:
        """Offer what was put in the place of weights that were written meanwhile."""
        with self._guarded(), self._lock:
            if not successor.withdrawn:
                self._lost.pop(served.role, None)
                successor.seal(digests)
                self._tell(served, successor)
                self._monitor.keep(successor)

    def prove(self, published: PublishedModel) -> None:
        """Post-processing has left every byte as it was digested."""
        self._proven.add(role_of(published))

    def _gone(self, role: str, owner: object) -> None:
        """A model is gone, or the process ends; another model may have its role by now.

        Runs from the garbage collector, so it must not wait: the thread that has our lock may be
        writing a line of the log, for which it waits for the very thread that collects.
        """
        if not self._lock.acquire(blocking=False):
            later = partial(self._gone_now, role, owner)
            threading.Thread(target=later, name="netloader-gone", daemon=True).start()
            return
        try:
            self._gone_now(role, owner)
        finally:
            self._lock.release()

    def _gone_now(self, role: str, owner: object) -> None:
        with self._lock:
            if self._owners.get(role) is owner:
                self._retire(role)

    def _retire(self, role: str) -> None:
        """Offer a role no more; without another one, stop serving."""
        with self._guarded(), self._lock:
            if (served := self._served.pop(role, None)) is not None:
                served.usage.stop()
            self._models.pop(role, None)
            for published in (self._on_catalog(role), self._returning.pop(role, None)):
                if published is not None and not published.withdrawn:
                    published.withdraw("the model is gone")
            if not self._served and self._port is not None:
                self._port.close()
                self._port = self._catalog = None

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except NetloaderError as error:
            refuse(self._logger, str(error), "this model cannot be served")
        except Exception as error:  # noqa: BLE001 - the engine serves inference without us
            emit(self._logger, "netloader.driver.error", exc_info=error)

    def _published(self, served: ServedModel, weights: ModuleStore) -> PublishedModel:
        options = replace(self._options, layouts=(served.layout,), facts=served.facts)
        changed = self._monitor.changed
        published = publish(weights, served.identity(), options, served.usage, changed)
        with self._lock:
            self._known.add(published)
        return published

    def _on_catalog(self, role: str) -> PublishedModel | None:
        published_models = self._catalog.published_models if self._catalog else ()
        return next((p for p in published_models if p.entry.role == role), None)

    def _put(self, published: PublishedModel) -> bool:
        """Offer a published model; the first one opens the port. False when that cannot be had."""
        self._fenced.discard(role_of(published))
        self._lost.pop(role_of(published), None)
        if self._catalog is not None:
            self._catalog.put(published)
            return True
        catalog = Catalog((published,))
        try:
            self._port = OpenPort(self._choice, catalog, self._options.deadlines, self._logger)
        except (OSError, RuntimeError) as error:
            tell_failed(self._choice, error, self._logger)
            return False
        self._catalog = catalog
        return True

    def _tell(self, served: ServedModel, published: PublishedModel) -> None:
        if self._port is None:
            return
        manifest = published.entry.manifest
        fields = {
            "netloader.endpoint": str(self._port.told or address.UNKNOWN),
            "netloader.rank": self.rank,
            "netloader.role": served.role,
            "netloader.layout": served.layout,
            "netloader.raw_bytes": manifest.nbytes,
            "netloader.cached_bytes": served.cached_bytes,
            "netloader.cached_in": served.cached_in,
            "netloader.manifest.tensor_count": len(manifest.tensors),
            "netloader.manifest.digest": manifest.digest,
        }
        emit(self._logger, "netloader.server.offered", fields)


def role_of(published: PublishedModel) -> str:
    """The role of what is published; here all have one."""
    return published.entry.role or ""
