"""How a rank receives: what it asks, how it is filled, and the relay that serves what it has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from netloader.config import Endpoint
from netloader.errors import UnsafeError
from netloader.fsm.identity import Identity
from netloader.io.client import fill
from netloader.io.cores import default_lanes
from netloader.io.describe import Described, describe
from netloader.io.failed_sources import heard
from netloader.io.options import ClientOptions, SourceFeed
from netloader.io.outcome import Attempt, Outcome
from netloader.io.own_folder import confirmed
from netloader.io.store.module import ModuleStore, Named, WeightsError
from netloader.log import Logger, emit
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity.identity import RAW
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.load import display
from netloader.vllm_plugin.load.loaded import Loaded
from netloader.vllm_plugin.load.offer import new_server, raw_facts
from netloader.vllm_plugin.load.plan import LoadPlan, plan_load
from netloader.vllm_plugin.serve.relay import RankRelay
from netloader.vllm_plugin.serve.worker import this_worker

PROCESSED_LATER = (
    "the source offers the processed layout, which is filled in place, after post-processing; "
    "clients are served when the load has ended"
)


@contextmanager
def relaying(
    plan: LoadPlan, constructed: Mapping[str, int], settings: Settings
) -> Iterator[RankRelay | None]:
    """Serve what is received inside the block, if the operator wants that.

    After it, whatever its end, no client reads the memory. None: nothing is served meanwhile.
    """
    relay = None
    if settings.relay and plan.serves:
        loaded = Loaded(plan.state, plan.unfilled, filled=plan.filled, constructed=constructed)
        new = partial(new_server, settings, this_worker().activity)
        relay = this_worker().relay(plan.role, raw_facts(plan, loaded), plan.rank, new, plan.place)
    try:
        yield relay
    finally:
        if relay is not None:
            relay.end()


def tell_not_relayed(plan: LoadPlan, settings: Settings, logger: Logger) -> None:
    """Log that nothing is served meanwhile because of the layout, where that is wanted."""
    if settings.relay and plan.serves and plan.sources and plan.layout != RAW:
        emit(logger, "netloader.relay.failed", {"netloader.detail": PROCESSED_LATER})


def options_of(
    settings: Settings,
    layout: str,
    logger: Logger,
    report: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
    silent: tuple[Attempt, ...] = (),
    relay: RankRelay | None = None,
    feed: SourceFeed | None = None,
) -> ClientOptions:
    """How to ask the sources, as the operator wants it."""
    return ClientOptions(
        transports=settings.transports,
        layouts=(layout,),
        lanes=settings.lanes or default_lanes(),
        rails=settings.rails,
        parallel=settings.parallel,
        token=settings.token,
        tls=settings.tls,
        deadlines=settings.deadlines,
        digest=settings.digest,
        report=report,
        relay=relay,
        serves_at=relay.told or None if relay else None,
        feed=feed,
        silent=silent,
        on_attempt=heard,
        logger=logger,
    )


@dataclass(frozen=True, slots=True)
class Receiver:
    """Asks the sources of a rank, and fills tensors from them, as the operator wants it."""

    settings: Settings
    logger: Logger
    shows_progress: bool
    """Whether rank 0 shows a bar."""

    def ask(self, sources: Sequence[Endpoint], known: Identity) -> Described:
        """Ask sources what they resolved when they loaded the model."""
        return describe(sources, known, options_of(self.settings, RAW, self.logger))

    def plan(self, model: LocalModel, settings: Settings) -> LoadPlan:
        """How a model is loaded, with folders that hold the same bytes as the peer that answers."""
        plan = plan_load(model, settings, self.ask, self.logger)
        options = options_of(settings, RAW, self.logger)
        return replace(plan, sources=confirmed(plan.sources, plan.folders, options))

    def receive(
        self,
        named: Sequence[Named],
        plan: LoadPlan,
        identity: Callable[[], Identity],
        relay: RankRelay | None = None,
    ) -> Outcome | None:
        """Fill tensors from the sources; None when that raised an error.

        Raises:
            UnsafeError: an aborted transfer may still write, so no loader may fill this model.
        """
        try:
            weights = ModuleStore(named)
            shown = self.shows_progress and plan.rank == 0  # as vLLM's own loaders
            with display.bar(weights.manifest.nbytes, shown) as report:
                given = (plan.layout, self.logger, report, plan.silent, relay, plan.lookup)
                options = options_of(self.settings, *given)
                outcome = fill(weights, plan.sources, identity(), options)
        except UnsafeError:
            raise
        except WeightsError as error:
            emit(self.logger, "netloader.source.odd", {"netloader.detail": str(error)})
            return None
        except Exception as error:  # noqa: BLE001 - a bug in netloader costs a source, not an engine
            emit(self.logger, "netloader.driver.error", exc_info=error)
            return None
        for folder in plan.folders:
            folder.heard(outcome.attempts)
        display.tell_differences(outcome, self.logger)
        if outcome.ok:
            fields = {
                "netloader.source": str(outcome.source),
                "netloader.source.attempt": len(outcome.attempts),
                "netloader.rank": plan.rank,
                "netloader.role": plan.role,
                "netloader.layout": plan.layout,
                "netloader.transfer.bytes": outcome.nbytes,
                "netloader.warnings": ", ".join(plan.warned) or "none",
            }
            emit(self.logger, "netloader.loader.received", fields)
        return outcome
