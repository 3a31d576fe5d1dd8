"""What is to be done for one model, found out before it is built. Law: asked once, then fixed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from json import loads

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.distributed import get_tp_group, get_world_group, parallel_state

from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.io.client import Survey
from netloader.io.weights import Named, named_tensors
from netloader.log import Logger, emit, get_logger
from netloader.vllm_plugin import LOG_BASE, loadstate, processed, publish
from netloader.vllm_plugin import identity as identities
from netloader.vllm_plugin.settings import LayoutChoice, Settings


@dataclass(frozen=True, slots=True)
class Errand:
    """One model to load: who we are, whom to ask, what the first source said of itself."""

    role: str
    rank: int
    ranks: tuple[int, ...]
    """`torch.distributed` ranks that load this model together."""
    sources: tuple[Endpoint, ...]
    layout: str
    state: loadstate.State
    """What the server's `load_weights` left behind."""
    unfilled: frozenset[str]
    """Parameters that no checkpoint fills, so that no bytes are sent for them."""
    identify: Callable[[str, loadstate.State], Identity]
    """Ours, in a layout and with a state; asked anew when the checkpoint has changed."""
    serves: bool
    """Whether this rank is to be a server itself, so that originals are kept and digested."""
    path: str
    """The checkpoint the model was configured with."""

    @property
    def identity(self) -> Identity:
        """Ours, in the layout and with the state of the source."""
        return self.identify(self.layout, self.state)

    def tensors(self, model: nn.Module) -> list[Named]:
        """The raw tensors that travel."""
        return [(name, t) for name, t in named_tensors(model) if name not in self.unfilled]


def errand_of(
    vllm_config: VllmConfig,
    model_config: ModelConfig,
    settings: Settings,
    ask: Callable[[Sequence[Endpoint], Identity], Survey],
    logger: Logger,
) -> Errand:
    """Ask the sources what they resolved, and have vLLM build the same parameters here."""
    rank = identities.rank(vllm_config.parallel_config)
    sources = tuple(settings.sources.get(rank, ()))
    survey = Survey(None, sources)
    early = identities.known_early(model_config, settings.model)
    if sources:
        try:
            survey = ask(sources, early)
        except Exception as error:  # noqa: BLE001 - a bug of ours costs a source, not an engine
            emit(logger, "netloader.driver.error", exc_info=error)
    facts = survey.description.facts if survey.description else {}
    identities.adopt(facts, model_config)
    role = identities.role_of(model_config)

    def identify(layout: str, state: loadstate.State) -> Identity:
        return identities.identity_of(vllm_config, model_config, early, layout, state)

    return Errand(
        role=role,
        rank=rank,
        ranks=_company(role),
        sources=survey.sources,
        layout=_layout(facts, settings, vllm_config),
        state=_state(facts, logger),
        unfilled=_unfilled(facts, logger) if role == identities.DRAFT else frozenset(),
        identify=identify,
        serves=publish.wanted(settings, rank) and not _moving(vllm_config),
        path=str(model_config.model),
    )


def _moving(vllm_config: VllmConfig) -> bool:
    """Whether weights change while this instance runs; says so, for it does not serve then."""
    if identities.moves_experts(vllm_config):
        why = "experts change places while this instance runs (EPLB), and so do its weights"
        remedy = "turn dynamic EPLB off to serve; an expert map in a file is fine"
    elif identities.refills_layers(vllm_config):
        why = "layers are refilled while this instance runs (layer_sharding)"
        remedy = "turn layer_sharding off in --additional-config to serve"
    else:
        return False
    publish.refuse(get_logger("server", LOG_BASE), why, remedy)
    return True


def _layout(facts: Mapping[str, str], settings: Settings, vllm_config: VllmConfig) -> str:
    """As the server offers it, where that can be had; else raw, and the server will say no."""
    device = torch.device(vllm_config.device_config.device).type
    wanted = settings.layout is not LayoutChoice.RAW and processed.allowed(device)
    theirs = facts.get(identities.LAYOUT) == identities.PROCESSED
    return identities.PROCESSED if theirs and wanted else identities.RAW


def _state(facts: Mapping[str, str], logger: Logger) -> loadstate.State:
    try:
        return loadstate.parse(facts.get(identities.STATE, ""))
    except loadstate.StateError as error:  # the identities will differ, and say in what
        emit(logger, "netloader.source.odd", {"netloader.detail": str(error)})
        return loadstate.NOTHING


def _unfilled(facts: Mapping[str, str], logger: Logger) -> frozenset[str]:
    try:
        names = loads(facts.get(identities.UNFILLED, "[]"))
    except (ValueError, RecursionError):
        names = None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return frozenset(names)
    detail = "the names of the parameters that no checkpoint fills are no list of names"
    emit(logger, "netloader.source.odd", {"netloader.detail": detail})  # the manifests will differ
    return frozenset()


def _company(role: str) -> tuple[int, ...]:
    """Who loads this model along with us: a draft lives on the last pipeline stage only."""
    if not parallel_state.model_parallel_is_initialized():
        return (0,)
    group = get_tp_group() if role == identities.DRAFT else get_world_group()
    return tuple(group.ranks)
