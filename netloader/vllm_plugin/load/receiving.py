"""How a rank receives: the options of a fill, and the relay that serves what it has received."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from netloader.io.cores import default_lanes
from netloader.io.options import ClientOptions, SourceFeed
from netloader.io.outcome import Attempt
from netloader.log import Logger, emit
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity.identity import RAW
from netloader.vllm_plugin.load.loaded import Loaded
from netloader.vllm_plugin.load.offer import new_server, raw_facts
from netloader.vllm_plugin.load.plan import LoadPlan
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
        logger=logger,
    )
