"""Take over from a source what an engine computes at its start, where the operator wants that.

It happens before vLLM computes any of it: compiled code is looked for, and the KV cache sized, when
the model is loaded.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from vllm.config import VllmConfig

from netloader.config import Endpoint
from netloader.files.caches import take_compiled
from netloader.files.fingerprint import of_machine, of_vllm
from netloader.files.hints import kv_size_in, place_inspections, take_hints
from netloader.files.rules import FilesError
from netloader.fsm.canonical import canonical
from netloader.fsm.identity import ROLE, Identity, Role
from netloader.io.options import ClientOptions
from netloader.log import Logger, emit
from netloader.vllm_plugin.config.settings import CachePolicy, Settings
from netloader.vllm_plugin.identity.identity import TARGET
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.patches import cache_root
from netloader.vllm_plugin.serve.harmless import harmless
from netloader.vllm_plugin.serve.known import Known
from netloader.vllm_plugin.serve.kv_cache import KvCache
from netloader.vllm_plugin.serve.worker import Worker


@dataclass(frozen=True, slots=True)
class Caches:
    """What this rank may take over, and under which conditions. Made before the model is built."""

    model: str
    fingerprint: Identity
    kv_conditions: Mapping[str, str]
    vllm_config: VllmConfig
    options: ClientOptions

    @classmethod
    def of(
        cls,
        local: LocalModel,
        vllm_config: VllmConfig,
        kept: Mapping[str, str],
        options: ClientOptions,
    ) -> "Caches | None":
        """Those of the model that answers, asked for with `options`; None for a draft.

        `kept` is what the load keeps, by `kept_at_load`. Another vLLM, or a platform of another
        package, may not say what it compiles by, or not in time: then the log says so, and nothing
        is taken over or offered. No error is raised.
        """
        if local.role != TARGET:
            return None
        try:
            made = {**local.early.hard, **cache_root.conditions(vllm_config)}
            machine = Identity({**made, **of_machine(), ROLE: Role.CACHES.value})
            kv = {**made, **of_vllm(), **cache_root.sizing(vllm_config), **kept}
            return cls(made["model"], machine, kv, vllm_config, options)
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine starts without
            _tell("what caches depend on is not known here", error, options.logger)
            return None

    def take_hints(self, sources: Sequence[Endpoint], kv_cache: KvCache) -> None:
        """Take over the size of the KV cache, and what vLLM found in the class of the model.

        The second is read before this process begins, so it is for the next start on this host;
        `netloader run --caches` brings it in time.
        """
        kv_cache.conditions = self.kv_conditions
        if sources:
            with _told("hints", self.options.logger) as told:
                hints = take_hints(sources, self.model, self.options)
                kv_cache.hint = kv_size_in(hints)
                told(place_inspections(hints, cache_root.root()))

    def take_when_due(self, sources: Sequence[Endpoint], model: nn.Module, ours: Worker) -> None:
        """Take over compiled code when vLLM's keys are final, just before it looks for any."""

        def take() -> None:
            ours.known = self.take_compiled(sources, model)

        ours.kv_cache.before.append(take)

    def take_compiled(self, sources: Sequence[Endpoint], model: nn.Module) -> Known:
        """Put compiled code where vLLM is going to look for it; what this rank will know itself."""
        known = self._known(model)
        if sources and known.folders:
            with _told("compiled code", self.options.logger) as told:
                where = (known.folders, cache_root.root())
                told(take_compiled(sources, self.fingerprint, *where, self.options))
        return known

    def _known(self, model: nn.Module) -> Known:
        return Known(
            self.model,
            self.fingerprint,
            self._folders(model),
            cache_root.inspections(self.vllm_config.model_config),
            partial(cache_root.of_another_rank, vllm_config=self.vllm_config),
        )

    def _folders(self, model: nn.Module) -> Mapping[str, Path]:
        """Where compiled code is; none where vLLM does not say so or the disk takes none."""
        digest = hashlib.sha256(canonical(self.fingerprint.hard)).hexdigest()
        try:
            return cache_root.compiled(model, self.vllm_config, digest[:16])
        except Exception as error:  # noqa: BLE001 - as above; hints are taken and offered
            what = "compiled code is neither taken over nor offered"
            _tell(what, error, self.options.logger)
            return {}


def kept_at_load(settings: Settings, local: LocalModel, *, serves: bool) -> dict[str, str]:
    """What the settings have a load keep in memory beside the model, as conditions of its size.

    Without a server nothing is kept, nor where the raw layout is not offered. Other settings take
    memory only while weights are received or sent.
    """
    keeping = settings.keeping_at_load if serves else None
    others = keeping.others_on(local.device_type) if keeping else CachePolicy.NO
    return {
        "WEIGHT_CACHE": others.value,
        "INT8_CACHE": (keeping.int8 if keeping else CachePolicy.NO).value,
        "INT8_CACHE_NAME": " ".join(sorted(keeping.int8_names)) if keeping else "",
        "room": str(settings.standby and local.device_type == "cpu"),
    }


def _tell(what: str, error: Exception, logger: Logger) -> None:
    """Log what this rank goes on without, and why."""
    why = f"{what}: {type(error).__name__}: {error}".removesuffix(": ")
    emit(logger, "netloader.caches.refused", {"netloader.detail": why}, exc_info=error)


@contextmanager
def _told(what: str, logger: Logger) -> Iterator[Callable[[Sequence[str]], None]]:
    """Log what was taken, or why nothing was; no error leaves the block."""

    def taken(names: Sequence[str]) -> None:
        fields = {"netloader.detail": f"{what}, {len(names)} files that were not here"}
        emit(logger, "netloader.caches.taken", fields)

    with harmless():
        try:
            yield taken
        except FilesError as error:
            emit(logger, "netloader.caches.refused", {"netloader.detail": str(error)})
