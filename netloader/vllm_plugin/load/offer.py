"""Offer a loaded model, if its weights are proven to be those that were loaded.

The raw layout if every original is there; else the processed one where kernels hide nothing; else
none, and the log says why and what would help.
"""

import json
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from netloader.files.folder import FolderFiles
from netloader.files.rules import DATA, WITH_CODE, FilesError
from netloader.fsm.identity import Identity
from netloader.io.publishing import ServerOptions
from netloader.io.store.module import ModuleStore, Named, WeightsError, named_tensors
from netloader.log import Logger, emit, get_logger
from netloader.vllm_plugin.config.settings import LayoutChoice, Settings
from netloader.vllm_plugin.identity import ranks
from netloader.vllm_plugin.identity.identity import CONSTRUCTED, FILLED, PROCESSED, RAW, TARGET
from netloader.vllm_plugin.identity.local_model import facts_of
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.load import load_state, processed, provenance
from netloader.vllm_plugin.load.loaded import Loaded
from netloader.vllm_plugin.load.plan import LoadPlan
from netloader.vllm_plugin.load.raw import GoneError
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.patches import placeholders, worker_methods
from netloader.vllm_plugin.serve.activity import Activity
from netloader.vllm_plugin.serve.port import PortChoice
from netloader.vllm_plugin.serve.refusal import refuse
from netloader.vllm_plugin.serve.saving import Saving
from netloader.vllm_plugin.serve.served_model import (
    Originals,
    ServedModel,
    owners_of,
    place_of,
    renew_processed,
)
from netloader.vllm_plugin.serve.server import RankServer
from netloader.vllm_plugin.serve.usage_record import UsageRecord
from netloader.vllm_plugin.serve.worker import this_worker


def expect(plan: LoadPlan, settings: Settings) -> None:
    """Have the other ranks of this host know what this one is going to serve."""
    if plan.serves:
        ours = this_worker()
        ours.expect(plan.identity, plan.rank, partial(new_server, settings, ours.activity))


def offer(
    model: nn.Module,
    plan: LoadPlan,
    loaded: Loaded,
    settings: Settings,
) -> bool:
    """Serve a post-processed model in the best layout there is, when it may be; never raises.

    Returns:
        False when it may not be; the log says why.
    """
    logger = get_logger("server", LOG_BASE, **ranks.named(plan.rank))
    if loaded.room is not None:
        refuse(logger, placeholders.WHY, placeholders.REMEDY)
        return False
    try:
        served = _served_model(model, plan, loaded, settings.layout)
    except GoneError as gone:
        refuse(logger, str(gone), gone.remedy)
    except WeightsError as error:
        refuse(logger, str(error), "this model cannot be served")
    except Exception as error:  # noqa: BLE001 - the engine serves inference without us
        emit(logger, "netloader.driver.error", exc_info=error)
    else:
        ours = this_worker()
        worker_methods.install_on(model, ours)
        saving = Saving.of(settings.save, plan.identity, plan.damaged) if settings.save else None
        served = replace(served, place=plan.place, saving=saving)
        served = replace(served, folder=_folder(plan, logger))
        ours.offer(model, served, plan.rank, partial(new_server, settings, ours.activity))
        return True
    return False


def _folder(plan: LoadPlan, logger: Logger) -> FolderFiles | None:
    """The files of the model's folder, of the rank that clients ask for them."""
    if plan.rank or plan.role != TARGET or plan.files.folder is None:
        return None
    rules = WITH_CODE if plan.files.has_code else DATA
    try:
        return FolderFiles.read(plan.files.folder, *plan.names, rules)
    except (FilesError, OSError) as error:
        emit(logger, "netloader.files.refused", {"netloader.detail": str(error)})
        return None


def new_server(settings: Settings, activity: Activity, rank: int) -> RankServer:
    """A server of a rank, which listens when there is something to serve."""
    busy = settings.max_bandwidth_busy
    options = ServerOptions(
        transports=settings.transports,
        segment_bytes=settings.segment_mib << 20,
        max_clients=settings.max_clients,
        max_bandwidth=settings.max_bandwidth,
        busy_bandwidth=busy,
        busy=None if busy is None else activity.busy,
        rails=settings.rails,
        token=settings.token,
        tls=settings.tls,
        allow=settings.allow,
        deadlines=settings.deadlines,
        digest=settings.digest,
    )
    return RankServer(rank, PortChoice.of(settings, rank), options)


@inventory.uncollected()
def _served_model(
    model: nn.Module,
    plan: LoadPlan,
    loaded: Loaded,
    choice: LayoutChoice,
) -> ServedModel:
    """What there is to offer.

    Raises:
        GoneError: the originals were replaced and not kept, and nothing else is possible.
        WeightsError: nothing can be offered; the message says why.
    """
    device = next((t.device.type for _, t in named_tensors(model)), "cpu")
    try:
        return _raw(model, plan, loaded)
    except (GoneError, WeightsError):
        if choice is LayoutChoice.RAW or not processed.allowed(device):
            raise
    return _processed(model, plan, loaded)


def _raw(model: nn.Module, plan: LoadPlan, loaded: Loaded) -> ServedModel:
    if loaded.snapshot is None:
        raise WeightsError(loaded.obstacle or "the processed layout is not possible on this device")
    kept = loaded.snapshot.after(model)
    usage = UsageRecord(model, kept.named, kept.detached, kept.constants)
    return ServedModel(
        role=plan.role,
        layout=RAW,
        identity=lambda: identity_of(plan, RAW, loaded.state, loaded.constructed),
        facts=raw_facts(plan, loaded),
        weights=kept.weights,
        renew=Originals(model, kept, loaded.snapshot.manifest, usage).renew,
        usage=usage,
        owners=owners_of(model, kept),
        cached_bytes=kept.cached_bytes,
        cached_in=place_of(kept),
        digests=loaded.snapshot.digests,
    )


def raw_facts(plan: LoadPlan, loaded: Loaded) -> dict[str, str]:
    """What clients of the raw layout have to know before they build their models."""
    return {
        **_facts(RAW, plan, loaded),
        FILLED: json.dumps(sorted(loaded.filled)),
        CONSTRUCTED: provenance.fact_of(loaded.constructed),
        **plan.answers(),
    }


def _facts(layout: str, plan: LoadPlan, loaded: Loaded) -> dict[str, str]:
    state = load_state.render(loaded.state)
    return facts_of(layout, state, loaded.unfilled, untied=plan.untied)


def identity_of(
    plan: LoadPlan, layout: str, state: load_state.State, constructed: Mapping[str, int]
) -> Identity:
    """Our identity, with how the model was constructed."""
    plain = plan.identify(layout, state)
    return Identity(plain.hard, {**plain.soft, **provenance.soft_field(constructed)})


def _processed(model: nn.Module, plan: LoadPlan, loaded: Loaded) -> ServedModel:
    named = processed.collect(model)
    weights = ModuleStore(named)
    usage = UsageRecord(model, named)
    found = weakref.ref(model)  # what is on offer must not keep its model alive

    def collect() -> list[Named]:
        now = found()
        if now is None:
            raise WeightsError("the model is gone")
        return processed.collect(now)

    kernels = processed.kernel_state(model)
    return ServedModel(
        role=plan.role,
        layout=PROCESSED,
        identity=lambda: processed.sharpened(plan.identify(PROCESSED, loaded.state), kernels),
        facts={
            **_facts(PROCESSED, plan, loaded),
            **plan.answers(),
        },
        weights=weights,
        renew=partial(renew_processed, collect, weights.manifest, usage),
        usage=usage,
    )
