"""What a rank offers of one model, from its first offer until the model is garbage.

`netloader.Server` publishes, replaces and evicts. Decided here is when weights are offered again:
after a change, when it is known what the engine uses; after a sleep, when every byte is the same.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from netloader.errors import NetloaderError
from netloader.io.background import in_background
from netloader.io.clock import monotonic
from netloader.io.device import CPU
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.module import ModuleStore
from netloader.log import Logger, emit
from netloader.vllm_plugin.serve import address
from netloader.vllm_plugin.serve.change_monitor import ChangeMonitor, NotOnOfferError
from netloader.vllm_plugin.serve.port import RankPort
from netloader.vllm_plugin.serve.refusal import refuse
from netloader.vllm_plugin.serve.served_model import ServedModel

EVICT_S = 10.0
"""How long a change of the weights waits, beyond the stall deadline, for clients to be gone."""
RESTART = "reload the weights from a checkpoint, or restart this instance, to serve again"
ANNOUNCE = (
    "change weights with vLLM's reload_weights or its update methods, as docs/operate/vllm.md says"
)
GONE = "the model is gone"


@dataclass(frozen=True, slots=True)
class Rank:
    """What the models of one rank share."""

    number: int
    port: RankPort
    options: ServerOptions
    logger: Logger
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Guards what is served. Not held while anything waits for clients."""

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Log an exception that leaves the block, and end it: the engine goes on without us."""
        try:
            yield
        except NetloaderError as error:
            refuse(self.logger, str(error), "this model cannot be served")
        except Exception as error:  # noqa: BLE001 - as above
            emit(self.logger, "netloader.driver.error", exc_info=error)


class LiveModel:
    """A model that is served, and does not keep it alive. Safe to use from any thread.

    Raises:
        WeightsError: there are no bytes to serve.
    """

    def __init__(self, model: nn.Module, served: ServedModel, rank: Rank) -> None:
        self._model = weakref.ref(model)
        self._rank = rank
        self._monitor = ChangeMonitor(self)
        self.served = served
        self.changing = False
        """Whether a method that is watched changes the weights now."""
        self.published = self._publish(served)
        """The newest one that was offered; it may be withdrawn."""
        self._returning: PublishedModel | None = None
        """Looked at now, to be offered in the place of `published` unless a fence comes first."""
        self._fenced = False
        self._lost = ""
        """Why it is not known what there is to offer; empty when it is known."""
        self.proven = False
        """Whether an audit has found every byte as it was digested."""
        self.retired = False
        self.published.seal(served.digests)

    @property
    def on_device(self) -> bool:
        """Whether the weights are on a device, and may be read there now."""
        with self._rank.lock:
            return self.served.weights.device != CPU and bool(self._returning or not self._fenced)

    def includes(self, module: nn.Module) -> bool:
        """Whether a module is the model, or a part of it."""
        model = self._model()
        return model is not None and any(part is module for part in model.modules())

    def offer(self, published: PublishedModel) -> bool:
        """Offer this in the place of what was offered before; False when there is no port.

        The lock of the rank is held.
        """
        self.published, self._fenced, self._lost = published, False, ""
        if self.retired:
            published.withdraw(GONE)
            return False
        if not self._rank.port.offer(published):
            return False
        self._offered()
        return True

    def _offered(self) -> None:
        """Say what is on offer from now on, and watch it."""
        served, manifest = self.served, self.published.entry.manifest
        fields = {
            "netloader.endpoint": self._rank.port.told or address.UNKNOWN,
            "netloader.rank": self._rank.number,
            "netloader.role": served.role,
            "netloader.layout": served.layout,
            "netloader.raw_bytes": manifest.nbytes,
            "netloader.cached_bytes": served.cached_bytes,
            "netloader.cached_in": served.cached_in,
            "netloader.manifest.tensor_count": len(manifest.tensors),
            "netloader.manifest.digest": manifest.digest,
        }
        emit(self._rank.logger, "netloader.server.offered", fields)
        self._monitor.keep(self.published)

    def retire(self) -> None:
        """Offer nothing any more. Runs from the garbage collector too, so it must not wait."""
        self.retired = True
        self.served.usage.stop()
        for published in (self.published, self._returning):
            if published is not None and not published.withdrawn:
                published.withdraw(GONE)

    # -- announced changes -----------------------------------------------------------------------

    def fence(self, why: str) -> None:
        """Offer nothing, and wait until no client reads the memory."""
        offered = self.shut_down(why)
        if offered and self._rank.port.server is not None:
            fields = {"netloader.role": self.served.role, "netloader.detail": why}
            emit(self._rank.logger, "netloader.server.withdrawn", fields)

    def shut_down(self, why: str) -> bool:
        """As `fence`, without a record: the listener has one when it stops.

        Returns:
            Whether something was on offer.
        """
        with self._rank.lock:
            returning, self._returning = self._returning, None
            shown = (self.published, returning)
            offered = any(p is not None and not p.withdrawn for p in shown)
            self._fenced = True
        with self._rank.guarded():
            self._evict(returning, why)
        self.served.usage.pause()
        return offered

    def _evict(self, returning: PublishedModel | None, why: str) -> None:
        """Wait for the last reader of all that was published, be it replaced or not yet offered."""
        timeout_s = self._rank.options.deadlines.stall_s + EVICT_S
        end = monotonic() + timeout_s
        if returning is not None:
            returning.withdraw(why)
        quiet = self._rank.port.evict(self.served.role, why, timeout_s)
        if returning is not None:
            quiet = returning.quiet(max(0.0, end - monotonic())) and quiet
        if not quiet:
            detail = f"clients still read {timeout_s:g} s after: {why}"
            emit(self._rank.logger, "netloader.driver.error", {"netloader.detail": detail})

    def renew(self, weights: ModuleStore) -> None:
        """Offer weights that have changed; their digests are computed in the background."""
        with self._rank.guarded(), self._rank.lock:
            self.served = replace(self.served, weights=weights, digests=())
            published = self._publish(self.served)
            published.seal_quietly()
            self.offer(published)

    def lose(self, why: str) -> None:
        """It is not known any more what there is to offer, until it is renewed."""
        with self._rank.lock:
            self._lost = why
            self._tell_lost()
        refuse(self._rank.logger, why, RESTART)

    def _tell_lost(self) -> None:
        """Have clients told why nothing is offered: the reason of now."""
        if not self.retired:
            self.published.withdraw(f"{self._lost}; {RESTART}")

    def resume(self) -> None:
        """Offer again what was fenced, if every byte is still what it was."""
        with self._rank.guarded(), self._rank.lock:
            if not self._fenced or self._returning is not None:
                return
            self.served.usage.resume()
            if self._lost:
                self._tell_lost()
                return
            digests = self.published.digests(0)
            if not digests:  # then it is not known what the bytes were
                self.lose("the weights were taken away before their digests were known")
                return
            published = self._returning = self._publish(self.served)
            published.seal(digests)
            put_back = partial(self._put_back, published)
            in_background("netloader-audit", put_back, published.unproven, self._rank.logger)

    def resume_unchanged(self) -> None:
        """Offer again what was fenced for a moment in which weights do not change."""
        with self._rank.guarded(), self._rank.lock:
            usage = self.served.usage
            usage.resume()
            if not usage.complete:
                usage.begin()
            if not self.published.digests(0):
                self.renew(self.served.weights)
            else:
                self.resume()

    def _put_back(self, published: PublishedModel) -> None:
        """Offer what was fenced, once every byte was looked at."""
        published.audit()
        why = published.withdrawn or self.served.usage.awake()
        with self._rank.guarded(), self._rank.lock:
            if self._returning is not published:  # fenced again meanwhile
                return
            self._returning = None
            if why:
                self.lose(f"not all was the same after it was away: {why}")
            else:
                self.offer(published)

    # -- changes without an announcement --------------------------------------------------------

    def replace(self, published: PublishedModel, why: str) -> PublishedModel | None:
        """Offer something not known yet in the place of weights that were written meanwhile.

        Returns:
            What is offered then. None if post-processing was not yet seen to leave these weights
            alone: what is there now need not be what a client has to load.

        Raises:
            NotOnOfferError: they were fenced or replaced meanwhile.
        """
        with self._rank.lock:
            if self.published is not published or self._fenced or self.retired:
                raise NotOnOfferError
            fields = {
                "netloader.role": self.served.role,
                "netloader.detail": why,
                "netloader.remedy": ANNOUNCE,
            }
            emit(self._rank.logger, "netloader.server.withdrawn", fields)
            self._lost = why
            if not self.proven:
                self._tell_lost()
                return None
            self.published = self._publish(self.served)
            self._rank.port.offer(self.published)
            return self.published

    def look(self, weights: ModuleStore) -> tuple[str, ...]:
        """The digests of weights that are not on offer yet; none when they are taken away."""
        looked_at = self._publish(replace(self.served, weights=weights))
        with self._rank.lock:
            if self._fenced or self.retired:
                return ()
            self._returning = looked_at
        looked_at.seal_quietly().join()
        with self._rank.lock:
            if self._returning is looked_at:
                self._returning = None
        return looked_at.digests(0) or ()

    def confirm(self, successor: PublishedModel, digests: tuple[str, ...]) -> None:
        """Offer what was put in the place of weights that were written meanwhile."""
        with self._rank.guarded(), self._rank.lock:
            if not successor.withdrawn:
                self._lost = ""
                successor.seal(digests)
                self._offered()

    # -- publishing ------------------------------------------------------------------------------

    def _publish(self, served: ServedModel) -> PublishedModel:
        options = replace(self._rank.options, layouts=(served.layout,), facts=served.facts)
        changed = self._monitor.changed
        return publish(served.weights, served.identity(), options, served.usage, changed)
