"""The load format `netloader`.

vLLM's own `load_model` creates, loads and post-processes the model. `load_weights` receives from a
source or delegates to the ordinary loader, and after post-processing this rank serves the model.
The constructor runs two or three times per worker and only reads settings. The shared LoadConfig is
never changed.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from netloader.errors import ConfigError, NetloaderError
from netloader.io.outcome import Outcome
from netloader.io.store.module import WeightsError
from netloader.log import configure_json, emit, get_logger
from netloader.vllm_plugin.config.checks import loader_of, settings_of
from netloader.vllm_plugin.identity import ranks
from netloader.vllm_plugin.identity.identity import PROCESSED, RAW, TARGET
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.identity.reading import read_config
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.load import (
    agree,
    display,
    load_state,
    processed,
    provenance,
    receiving,
    standby,
)
from netloader.vllm_plugin.load.caches import Caches, kept_at_load
from netloader.vllm_plugin.load.loaded import Loaded, read, reloadable, taken
from netloader.vllm_plugin.load.offer import expect, identity_of, offer
from netloader.vllm_plugin.load.plan import LoadPlan, looked_up_again
from netloader.vllm_plugin.load.raw import Backup
from netloader.vllm_plugin.load.receiving import Receiver, options_of
from netloader.vllm_plugin.load.reload import (
    HandOver,
    Reloadable,
    obstacle,
    remember,
    remembered,
    unreadable,
)
from netloader.vllm_plugin.load.standby import StandbyRank, fill_ends, receive_raw
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.patches import placeholders, worker_methods
from netloader.vllm_plugin.patches.registries import Traces
from netloader.vllm_plugin.serve import port
from netloader.vllm_plugin.serve.saving import tell_not_saved
from netloader.vllm_plugin.serve.worker import this_worker

AUTO = "auto"


class NoWeightsError(NetloaderError):
    """No source delivered and FALLBACK is `never`."""


class RebuildError(Exception):
    """The model holds placeholders and cannot be loaded the ordinary way: build another one."""

    def __init__(self, outcome: Outcome | None) -> None:
        super().__init__()
        self.outcome = outcome


class NetLoader(BaseModelLoader):
    """Fill a model from a running server of the same model, else load it the ordinary way."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        self._settings = settings_of(load_config)
        self._logger = get_logger("client", LOG_BASE)
        self._receiver = Receiver(self._settings, self._logger, bool(load_config.use_tqdm_on_load))
        self._plan: LoadPlan | None = None
        self._loaded: Loaded | None = None

    def download_model(self, model_config: ModelConfig) -> None:
        """Fetch the checkpoint for the ordinary loader."""
        self._ordinary().download_model(model_config)

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> nn.Module:
        """Create, load and post-process as vLLM does, then serve what was loaded."""
        local = read_config(vllm_config, model_config, self._settings.model)
        self._logger = self._logger.bind(**ranks.named(local.rank))
        self._receiver = replace(self._receiver, logger=self._logger)
        self._start_logging()
        standby.check(vllm_config, local, self._settings)
        this_worker().open_metrics(self._settings.metrics_port, local.rank, self._logger)
        worker_methods.expect_warm_up(local.worker_classes)
        plan = self._receiver.plan(local, self._settings)
        if self._settings.standby:
            plan = standby.in_place(plan)
        receiving.tell_not_relayed(plan, self._settings, self._logger)
        if plan.refused and not plan.sources and not self._settings.standby:
            self._ordinary(plan.refused)  # FALLBACK `never` raises before a model is built
        if plan.role == TARGET:
            port.forget_address(port.PortChoice.of(self._settings, plan.rank))
        expect(plan, self._settings)
        caches = self._caches(local, vllm_config, plan)
        if caches:
            caches.take_hints(plan.sources, this_worker().kv_cache)
        build = partial(super().load_model, vllm_config, model_config, prefix)
        with ExitStack() as unless_offered:
            unless_offered.callback(plan.abandon)
            with plan.using_folders():
                model = self._build(plan, build, Traces(vllm_config))
            plan = plan.without_folders
            loaded, self._plan, self._loaded = self._loaded, None, None
            if caches:
                caches.take_when_due(plan.sources, model, this_worker())
            if loaded is not None and reloadable(loaded, model):
                known = (loaded.manifest, loaded.constructed, loaded.room)
                later = standby.in_place(plan) if loaded.room else plan
                later = replace(later, silent=())  # by then a source may answer again
                remember(model, Reloadable(later, *known))
            if self._settings.standby:
                this_worker().standby = StandbyRank(model, local, plan, self._receiver)
                return model
            if loaded is not None and plan.serves and offer(model, plan, loaded, self._settings):
                unless_offered.pop_all()
            elif self._settings.save:
                tell_not_saved(self._logger)
            return model

    def _caches(self, local: LocalModel, vllm_config: VllmConfig, plan: LoadPlan) -> Caches | None:
        """What this rank may take over, if the operator wants that."""
        if not self._settings.caches:
            return None
        kept = kept_at_load(self._settings, local, serves=plan.serves)
        asking = options_of(self._settings, RAW, self._logger)
        return Caches.of(local, vllm_config, kept, asking)

    def _build(self, plan: LoadPlan, build: Callable[[], nn.Module], traces: Traces) -> nn.Module:
        """Have vLLM build and load; a model the ordinary loader cannot load is built anew."""
        try:
            return self._first(plan, build)
        except RebuildError as error:
            outcome = error.outcome
        # Outside the handler, no frame refers to the first model, so its memory is freed.
        traces.undo()
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        display.tell_fallback(outcome, self._settings.fallback, self._logger, plan.unfound)
        self._ordinary(outcome)  # FALLBACK `never` raises before a second model is built
        self._plan = replace(plan, sources=(), ranks=(), layout=RAW)
        with plan.building():
            return build()

    def _first(self, plan: LoadPlan, build: Callable[[], nn.Module]) -> nn.Module:
        self._plan = plan
        with plan.building():
            model = build()
        if plan.layout == PROCESSED:
            self._receive_processed(model, plan)
        return model

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Receive the weights from a source, or have the ordinary loader read them.

        Raises:
            NoWeightsError: no source delivered and FALLBACK is `never`.
            DisagreementError: the ranks could not agree on the loader in time.
            StandbyError: the model cannot be filled later, in place.
        """
        plan = self._plan
        if plan is None:  # in place: vLLM or a framework calls a loader that built no model
            self._ordinary().load_weights(model, model_config)
            return
        plan.files.built()
        if self._settings.standby:
            standby.refuse(model)
            dummy = self._loader(placeholders.DUMMY, {})
            self._loaded = read(dummy, plan, model, model_config, None)
            if self._loaded.room:
                self._loaded.room.reserve()
            return
        if plan.layout == PROCESSED:
            self._prepare_processed(model, model_config, plan)
            return
        received, outcome = self._fill_raw(model, model_config, plan)
        if received and outcome is not None:
            self._loaded = taken(plan, model, self._settings.keeping_at_load, outcome.progress)
        else:
            display.tell_fallback(outcome, self._settings.fallback, self._logger, plan.unfound)
            loader = self._ordinary(outcome)
            self._loaded = read(loader, plan, model, model_config, self._settings.keeping_at_load)

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Iterable[tuple[str, Tensor]]:
        """For vLLM's `reload_weights`: from the sources as at start, else from the checkpoint.

        With another path than the one the model was started with, the checkpoint there is read,
        whatever FALLBACK says, because the caller asked for it.

        Raises:
            NotImplementedError: neither can be done.
            UnsafeError: an aborted transfer may still write into the model.
        """
        if problem := obstacle(model):
            raise NotImplementedError(f"{problem}; restart this instance instead")
        before = remembered(model)
        before = before and replace(before, plan=looked_up_again(before.plan))
        if before and before.room:
            before.room.check()
        outcome = None
        elsewhere = before is not None and before.plan.path != model_config.model
        if before and before.plan.sources and not elsewhere:
            named, outcome = receive_raw(before, self._receiver, next(model.parameters()).device)
            if self._all_received(outcome, before.plan) and outcome is not None:
                if before.room:
                    fill_ends(model, before, named, outcome.progress, self._settings)
                return HandOver(model, named)
            unfound = before.plan.unfound
            display.tell_fallback(outcome, self._settings.fallback, self._logger, unfound)
        if problem := unreadable(model):
            raise NotImplementedError(f"{problem}; restart this instance instead")
        asked_for = elsewhere and self._settings.fallback is None
        ordinary = self._loader(AUTO, {}) if asked_for else self._ordinary(outcome)
        if not hasattr(ordinary, "get_all_weights"):
            raise NotImplementedError(f"{type(ordinary).__name__} cannot reload weights")
        weights: Iterable[tuple[str, Tensor]] = ordinary.get_all_weights(model_config, model)
        if before and self._settings.standby:
            this_worker().after_reload.add(partial(standby.was_read, model, before, self._logger))
        return weights

    # -- from a source ---------------------------------------------------------------------------

    def _fill_raw(
        self, model: nn.Module, model_config: ModelConfig, plan: LoadPlan
    ) -> tuple[bool, Outcome | None]:
        """Fill a model between creating and post-processing; restore it when that fails.

        Raises:
            RebuildError: layers that quantize while loading hold placeholders now.
        """
        if not plan.sources:
            return self._all_received(None, plan), plan.refused
        online = any(map(load_state.quantizes_while_loading, model.modules()))
        if online:
            self._placeholders(model, model_config)
        found = inventory.take(model)
        constructed = provenance.constructed(found)
        outcome = None
        named = plan.tensors(model, found)
        backup = Backup(named), Backup(provenance.beyond_the_tree(model, named), sys.maxsize)
        with receiving.relaying(plan, constructed, self._settings) as relay:
            if self._fits(plan, model, constructed):
                identity = partial(identity_of, plan, RAW, plan.state, constructed)
                got = self._receiver.receive(named, plan, identity, relay)
                outcome = self._adopted(plan, model, got)
            received = self._all_received(outcome, plan)
        if not received and online:
            raise RebuildError(outcome)
        if not received:
            for copies in backup:
                copies.restore()
        return received, outcome

    def _adopted(self, plan: LoadPlan, model: nn.Module, outcome: Outcome | None) -> Outcome | None:
        """Apply the server's state beside tensors to a filled model; None when that failed."""
        if outcome is not None and outcome.ok:
            try:
                load_state.adopt(plan.state, model)
            except load_state.StateError as error:
                emit(self._logger, "netloader.source.odd", {"netloader.detail": str(error)})
                return None
        return outcome

    def _fits(
        self, plan: LoadPlan, model: nn.Module, constructed: Mapping[str, int] | None = None
    ) -> bool:
        """Whether the state that the server's `load_weights` left behind fits this model.

        `constructed` is how our model was constructed, where that has to be the same.
        """
        try:
            load_state.check(plan.state, model)
            if constructed is not None:
                provenance.check(plan.constructed, constructed)
        except (load_state.StateError, WeightsError) as error:
            emit(self._logger, "netloader.source.odd", {"netloader.detail": str(error)})
            return False
        return True

    def _prepare_processed(
        self, model: nn.Module, model_config: ModelConfig, plan: LoadPlan
    ) -> None:
        """Fill a model with placeholders, and apply the server's state beside tensors.

        Raises:
            RebuildError: the server's state does not fit this model.
        """
        self._placeholders(model, model_config)
        if not self._fits(plan, model):
            self._all_received(None, plan)
            raise RebuildError(None)
        load_state.adopt(plan.state, model)

    def _receive_processed(self, model: nn.Module, plan: LoadPlan) -> None:
        """Fill a post-processed model.

        Raises:
            RebuildError: it still holds placeholders, or something between.
        """
        outcome = None
        try:
            named = processed.collect(model)
            kernels = processed.kernel_state(model)
            outcome = self._receiver.receive(
                named, plan, lambda: processed.sharpened(plan.identity, kernels)
            )
            if outcome is not None and outcome.ok:
                processed.adopt_numbers(model, named)
        except WeightsError as error:
            emit(self._logger, "netloader.source.odd", {"netloader.detail": str(error)})
            outcome = None
        if not self._all_received(outcome, plan):
            raise RebuildError(outcome)
        self._loaded = Loaded(plan.state)

    def _all_received(self, outcome: Outcome | None, plan: LoadPlan) -> bool:
        """Whether this rank has its weights, and need not load them along with others."""
        received = outcome is not None and outcome.ok
        fallback = self._settings.fallback
        asked = bool(self._settings.sources)  # by some rank, and all have the same settings
        if asked and fallback and agree.needs_agreement(fallback.load_format, plan.ranks):
            timeout_s = self._settings.agree_timeout_s
            return agree.all_received(received, plan.role, plan.ranks, timeout_s)
        return received

    # -- the ordinary way ------------------------------------------------------------------------

    def _ordinary(self, outcome: Outcome | None = None) -> BaseModelLoader:
        fallback = self._settings.fallback
        if fallback is None:
            unfound = self._plan.unfound if self._plan else ""
            why = unfound or "no source is configured for this rank, or none fits this model"
            history = outcome.history() + display.table_of(outcome) if outcome else why
            raise NoWeightsError(f"FALLBACK is never, and no source delivered: {history}")
        return self._loader(fallback.load_format, dict(fallback.extra))

    def _placeholders(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Take a model through the steps of loading, with placeholder weights."""
        self._loader(placeholders.DUMMY, {}).load_weights(model, model_config)

    def _loader(self, load_format: str, extra: dict[str, object]) -> BaseModelLoader:
        return loader_of(self.load_config, load_format, extra)

    # -- settings --------------------------------------------------------------------------------

    def _start_logging(self) -> None:
        settings = self._settings
        if settings.log_json:
            try:
                configure_json(settings.log_json, base=LOG_BASE)
            except OSError as error:
                raise ConfigError([f"LOG_JSON: cannot be written: {error.strerror}"]) from error
        emit(self._logger, "netloader.config.loaded", display.settings_shown(settings))
