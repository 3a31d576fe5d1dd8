"""The load format `netloader`. Law: vLLM's own `load_model` creates, loads and post-processes.

`load_weights` receives from a source or delegates to the ordinary loader; after post-processing
this rank becomes a server itself. The constructor runs two or three times per worker and only
reads settings. The shared LoadConfig is never changed.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from tqdm.auto import tqdm
from vllm.config import ModelConfig, VllmConfig, replace
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from netloader.config import Endpoint
from netloader.errors import ConfigError, NetloaderError
from netloader.fsm.identity import Identity
from netloader.io.client import ClientOptions, Outcome, UnsafeError, describe, fill
from netloader.io.digests import ALGORITHMS
from netloader.io.transports import named
from netloader.io.weights import Weights, WeightsError
from netloader.log import configure_json, emit, get_logger
from netloader.vllm_plugin import LOG_BASE, publish
from netloader.vllm_plugin import identity as identities
from netloader.vllm_plugin.layout import Backup, RawSnapshot
from netloader.vllm_plugin.settings import Settings

AUTO = "auto"
BAR_FORMAT = (
    "{desc}: {percentage:3.0f}% Completed | {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_fmt}]\n"
)
"""As vLLM's bars: one line an update, because workers' output is prefixed line by line."""


class NoWeightsError(NetloaderError):
    """No source delivered and FALLBACK is `never`."""


@dataclass(frozen=True, slots=True)
class Target:
    """What `load_weights` must know beyond its arguments while `load_model` runs."""

    identity: Identity
    rank: int
    sources: tuple[Endpoint, ...]
    serves: bool


class NetLoader(BaseModelLoader):
    """Fill a model from a running server of the same model, else load it the ordinary way."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        extra = load_config.model_loader_extra_config
        self._settings = Settings.parse(extra)
        self._logger = get_logger("client", LOG_BASE)
        self._target: Target | None = None
        self._snapshot: RawSnapshot | None = None
        _check_transport(self._settings.transport)

    def download_model(self, model_config: ModelConfig) -> None:
        """Fetch the checkpoint for the ordinary loader."""
        self._ordinary().download_model(model_config)

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Generator[tuple[str, Tensor], None, None]:
        """Checkpoint tensors from the ordinary loader, for vLLM's `reload_weights`."""
        ordinary = self._ordinary()
        if not hasattr(ordinary, "get_all_weights"):
            msg = f"{type(ordinary).__name__} cannot reload weights"
            raise NotImplementedError(msg)
        yield from ordinary.get_all_weights(model_config, model)

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> nn.Module:
        """Create, load and post-process as vLLM does, then serve what was loaded."""
        self._start_logging()
        if identities.role_of(model_config) == identities.DRAFT:
            fields = {"netloader.detail": "draft models are loaded by the ordinary loader"}
            emit(self._logger, "netloader.loader.ordinary", fields)
            draft: nn.Module = self._ordinary().load_model(vllm_config, model_config, prefix)
            return draft
        rank = identities.rank()
        publish.forget_address(self._settings, rank)
        sources = tuple(self._settings.sources.get(rank, ()))
        self._resolve(sources, model_config)
        identity = identities.identity_of(vllm_config, model_config, self._settings.model)
        serves = publish.wanted(self._settings, rank)
        self._target = Target(identity, rank, sources, serves)
        model: nn.Module = super().load_model(vllm_config, model_config, prefix)
        if self._snapshot is not None:
            facts = identities.facts_of(model_config)
            shop = publish.Shop(self._settings, identity, facts, rank)
            shop.open(model, self._snapshot)
            self._snapshot = None
        return model

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Receive the weights from a source, or have the ordinary loader read them.

        Raises:
            NoWeightsError: no source delivered and FALLBACK is `never`.
        """
        target = self._target
        outcome = self._receive(model, target) if target and target.sources else None
        if outcome is None or not outcome.ok:
            self._load_ordinary(model, model_config, outcome)
        if target is not None and target.serves:
            self._snapshot = self._take(model, outcome)

    def _start_logging(self) -> None:
        settings = self._settings
        if settings.log_json:
            try:
                configure_json(settings.log_json, base=LOG_BASE)
            except OSError as error:
                raise ConfigError([f"LOG_JSON: cannot be written: {error.strerror}"]) from error
        fields = {
            "netloader.sources": sum(map(len, settings.sources.values())),
            "netloader.transport": settings.transport,
            "netloader.lanes": settings.lanes,
            "netloader.weight_cache": settings.weight_cache.value,
            "netloader.int8_cache": settings.int8_cache.value,
            "netloader.fallback": settings.fallback.load_format if settings.fallback else "never",
            "netloader.max_clients": settings.max_clients,
            "netloader.asks_for_proof": settings.token is not None,
        }
        emit(self._logger, "netloader.config.loaded", fields)

    def _resolve(self, sources: tuple[Endpoint, ...], model_config: ModelConfig) -> None:
        """Ask the sources what they resolved, so that vLLM builds the same parameters here."""
        if not sources or identities.has_weight_files(model_config):
            return
        early = identities.known_early(model_config, self._settings.model)
        try:
            description = describe(sources, early, self._options())
        except Exception as error:  # noqa: BLE001 - a bug of ours costs a source, not an engine
            emit(self._logger, "netloader.driver.error", exc_info=error)
            return
        if description is not None:
            identities.adopt(description.facts, model_config)

    def _receive(self, model: nn.Module, target: Target) -> Outcome | None:
        """Fill the model from its sources; None, and the model as it was, when that broke down.

        Raises:
            UnsafeError: an aborted transfer may still write, so nobody may load this model.
        """
        backup = Backup(model)
        try:
            weights = Weights.of(model)
            with _bar(weights.manifest.nbytes, self._shows_progress(target.rank)) as report:
                outcome = fill(weights, target.sources, target.identity, self._options(report))
        except UnsafeError:
            raise
        except WeightsError as error:
            emit(self._logger, "netloader.fallback.engaged", {"netloader.detail": str(error)})
            return None
        except Exception as error:  # noqa: BLE001 - a bug of ours costs a source, not an engine
            emit(self._logger, "netloader.driver.error", exc_info=error)
            backup.restore()
            return None
        if not outcome.ok:
            backup.restore()
        else:
            fields = {
                "netloader.source": str(outcome.source),
                "netloader.source.attempt": len(outcome.attempts),
                "netloader.rank": target.rank,
                "netloader.transfer.bytes": outcome.nbytes,
            }
            emit(self._logger, "netloader.loader.received", fields)
        return outcome

    def _load_ordinary(
        self, model: nn.Module, model_config: ModelConfig, outcome: Outcome | None
    ) -> None:
        if outcome is None:
            emit(self._logger, "netloader.loader.ordinary", {})
        else:
            fields = {
                "netloader.reason": outcome.reason.value,
                "netloader.detail": outcome.history(),
                "netloader.weights_dirty": outcome.weights_dirty,
            }
            emit(self._logger, "netloader.fallback.engaged", fields)
        self._ordinary(outcome).load_weights(model, model_config)

    def _take(self, model: nn.Module, outcome: Outcome | None) -> RawSnapshot | None:
        """Remember what was loaded; a client has verified the digests already."""
        known: tuple[str, ...] = ()
        if outcome is not None and outcome.ok:
            progress = outcome.progress
            same_cut = progress.segment_bytes == self._settings.segment_mib << 20
            known = progress.digests if same_cut and progress.algorithm in ALGORITHMS else ()
        try:
            return RawSnapshot(model, self._settings, known)
        except WeightsError as error:
            publish.refuse(self._logger, str(error), "this model cannot be served in raw layout")
            return None

    def _ordinary(self, outcome: Outcome | None = None) -> BaseModelLoader:
        fallback = self._settings.fallback
        if fallback is None:
            history = outcome.history() if outcome else "no source is configured for this rank"
            raise NoWeightsError(f"FALLBACK is never, and no source delivered: {history}")
        load_config = replace(
            self.load_config,
            load_format=fallback.load_format,
            model_loader_extra_config=dict(fallback.extra),
        )
        return get_model_loader(load_config)

    def _options(
        self,
        report: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
    ) -> ClientOptions:
        settings = self._settings
        chosen = "tcp" if settings.transport == AUTO else settings.transport
        return ClientOptions(
            transports=(chosen,),
            lanes=settings.lanes,
            token=settings.token,
            deadlines=settings.deadlines,
            report=report,
            logger=self._logger,
        )

    def _shows_progress(self, rank: int) -> bool:
        """As vLLM's own loaders: rank 0, unless the operator does not want it."""
        return bool(self.load_config.use_tqdm_on_load) and rank == 0


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int, int], None]]:  # noqa: FBT001 - tqdm's
    """A progress bar in vLLM's style; yields what to call with bytes verified and bytes in all."""
    bar = tqdm(
        total=total,
        desc="Receiving weights",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not shown,
        mininterval=0.5,
        bar_format=BAR_FORMAT,
    )
    with bar:
        yield lambda done, _: _advance(bar, done)


def _advance(bar: "tqdm[None]", done: int) -> None:
    """Set a bar to `done`; a source with other digests starts over, so it may go back."""
    bar.update(done - bar.n)


def _check_transport(name: str) -> None:
    if name == AUTO:
        return
    try:
        named(name)
    except ValueError as error:
        raise ConfigError([f"TRANSPORT: {error}"]) from error
