"""An instance that starts with placeholders, waits, is filled in place, and then offered.

With `STANDBY` an engine does everything but the weights and waits for `fill`; with
`FALLBACK: "dummy"` one that found no source is filled by vLLM's `reload_weights`. Both take the
same road: raw weights are received and verified, in place as far as the kernels use them as they
are, vLLM's reload post-processes them, and then they are offered as after any load.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import nn
from vllm.config import VllmConfig

from netloader.errors import ConfigError, NetloaderError, UnsafeError
from netloader.fsm.manifest import Progress
from netloader.io.clock import monotonic
from netloader.io.outcome import Outcome
from netloader.io.store.module import Named, WeightsError, manifest_of
from netloader.log import Logger, emit
from netloader.vllm_plugin.config import waiting
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.config.sources import dealt
from netloader.vllm_plugin.config.waiting import START
from netloader.vllm_plugin.identity.identity import RAW, TARGET
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.load import agree, load_state
from netloader.vllm_plugin.load.awaiting import Awaited
from netloader.vllm_plugin.load.loaded import Loaded, known_digests
from netloader.vllm_plugin.load.offer import identity_of, offer
from netloader.vllm_plugin.load.plan import LoadPlan
from netloader.vllm_plugin.load.raw import RawSnapshot
from netloader.vllm_plugin.load.receiving import Receiver
from netloader.vllm_plugin.load.reload import (
    HandOver,
    Reloadable,
    obstacle,
    remember,
    remembered,
)
from netloader.vllm_plugin.patches import compat
from netloader.vllm_plugin.serve.standing import Report, StandbyError, Standing
from netloader.vllm_plugin.serve.worker import this_worker

Done = TypeVar("Done")

OTHER_RANK = "another rank of this instance was not filled, so none is; its reason is beside"


def check(vllm_config: VllmConfig, local: LocalModel, settings: Settings) -> None:
    """Refuse a standby instance that could never be filled, before a model is built.

    Raises:
        ConfigError: it is one.
    """
    if not settings.standby:
        return
    if local.role != TARGET:
        raise ConfigError(
            [f"STANDBY: vLLM's reload in place does not reach a draft model; {START}, or no draft"]
        )
    waiting.check(vllm_config)


def refuse(model: nn.Module) -> None:
    """Refuse a model that cannot be filled in place, before anything is put into it.

    Raises:
        StandbyError: it is one.
    """
    problem = obstacle(model)
    if not problem and any(map(load_state.quantizes_while_loading, model.modules())):
        problem = "this model quantizes its weights while it loads them"
    if problem:
        raise StandbyError(f"STANDBY: {problem}; {START}")


def in_place(plan: LoadPlan) -> LoadPlan:
    """The plan of a model that holds placeholders: raw weights, and no state beside them.

    A reload in place would pass over a state, so a source that has one is to refuse.
    """
    return replace(plan, layout=RAW, state=load_state.NOTHING, filled=frozenset())


def receive_raw(
    before: Reloadable, receiver: Receiver, device: torch.device
) -> tuple[list[Named], Outcome | None]:
    """Receive raw weights for a reload in place: where the placeholders are, else beside the model.

    Raises:
        UnsafeError: an aborted transfer may still write into the placeholders.
    """
    plan = replace(before.plan, layout=RAW)
    named = before.destination(device)
    identity = partial(identity_of, plan, RAW, plan.state, before.constructed)
    try:
        return named, receiver.receive(named, plan, identity)
    except UnsafeError as error:
        if before.room is not None:
            before.room.give_up(str(error))
        raise


def fill_ends(
    model: nn.Module,
    before: Reloadable,
    named: list[Named],
    progress: Progress,
    settings: Settings,
) -> None:
    """When the reload under way has ended well, the model holds weights and is offered.

    Not earlier: a reload that fails leaves placeholders, or something between.
    """
    plan = before.plan

    def filled() -> None:
        remember(model, replace(before, room=None))
        if plan.serves:
            loaded = Loaded(plan.state, filled=plan.filled, constructed=before.constructed)
            known = known_digests(progress, settings.keeping)
            offer_received(model, plan, loaded, settings, named, known)

    this_worker().after_reload.add(filled)


def was_read(model: nn.Module, before: Reloadable, logger: Logger) -> None:
    """A program has had a checkpoint read into a model, which thus has weights."""
    remember(model, replace(before, room=None))
    if before.room is not None:
        emit(logger, "netloader.standby.read", {"netloader.rank": before.plan.rank})


def offer_received(
    model: nn.Module,
    plan: LoadPlan,
    loaded: Loaded,
    settings: Settings,
    named: list[Named],
    known: tuple[str, ...],
) -> None:
    """Offer a model that was reloaded with the raw tensors `named`, whose digests are `known`.

    `named` is empty afterwards.
    """
    try:
        kept = replace(loaded, snapshot=RawSnapshot(named, settings.keeping, known))
    except WeightsError as error:
        kept = replace(loaded, obstacle=str(error))
    named.clear()  # from here on, the settings say what is kept of those that are not in use
    offer(model, plan, kept, settings)


class StandbyRank(Standing):
    """One rank of an instance on standby. Used by vLLM's worker, from its one thread.

    All ranks are to make the same calls in the same order, as `collective_rpc` does.

    Raises:
        StandbyError: the model cannot be filled in place.
    """

    def __init__(
        self, model: nn.Module, local: LocalModel, plan: LoadPlan, receiver: Receiver
    ) -> None:
        if remembered(model) is None:
            raise StandbyError(f"STANDBY: the tensors of this model cannot be described; {START}")
        local.checkpoint.built = True
        self._model = weakref.ref(model)
        self._local = local
        self._plan = plan
        self._receiver = receiver
        self._fills = 0
        self._packed = [path for path, layer in model.named_modules() if compat.is_packed(layer)]
        emit(receiver.logger, "netloader.standby.waiting", {"netloader.rank": plan.rank})

    def status(self) -> Report:
        """Whether this rank holds weights."""
        model = self._model()
        load = None if model is None else remembered(model)
        return Report(rank=self._plan.rank, filled=load is not None and load.room is None)

    def finds_sources(self) -> bool:
        """Whether a source that is looked up, or a folder, is there now. Blocks as `Awaited`."""
        return self._awaited.there()

    @cached_property
    def _awaited(self) -> Awaited:
        return Awaited(self._local, self._receiver.settings, self._receiver.logger)

    def fill(self, reload: Callable[..., Any], sources: Sequence[str] = ()) -> Report:
        """Receive weights, verify them, and have vLLM's `reload` write them in place.

        `sources` are as in `config.sources.dealt`; without any, those of the settings are asked.
        Blocks until all ranks have done each step, or one has failed.

        Returns:
            What this rank holds now, and why it was not filled.
        """
        self._fills += 1
        begun = monotonic()
        try:
            with this_worker().after_reload.reloading():
                named = self._in_step("received", partial(self._receive, sources))
                received, nbytes = monotonic(), manifest_of(named).nbytes
                self._in_step("written", partial(self._write, reload, named))
                written = monotonic()
        except StandbyError as error:
            fields = {"netloader.rank": self._plan.rank, "netloader.detail": str(error)}
            emit(self._receiver.logger, "netloader.standby.failed", fields)
            return {**self.status(), "why": str(error)}
        report = self.status()
        report["receive_s"] = round(received - begun, 4)
        report["write_s"] = round(written - received, 4)
        report["offer_s"] = round(monotonic() - written, 4)
        report["bytes"] = nbytes
        emit(self._receiver.logger, "netloader.standby.filled", _fields(report))
        return report

    def _receive(self, sources: Sequence[str]) -> list[Named]:
        """Verified raw weights; none where the model has its weights already."""
        model, before = self._held()
        if before.room is None:
            return []
        plan = in_place(self._planned(sources))
        before = replace(before, plan=plan)
        if not plan.sources:
            raise StandbyError(_no_source(plan))
        device = next(model.parameters()).device
        with plan.using_folders():
            named, outcome = receive_raw(before, self._receiver, device)
        before = replace(before, plan=plan.without_folders)
        if outcome is None or not outcome.ok:
            why = outcome.history() if outcome else "an error of netloader, see the log"
            raise StandbyError(f"no source delivered: {why}")
        fill_ends(model, before, named, outcome.progress, self._receiver.settings)
        return named

    def _planned(self, sources: Sequence[str]) -> LoadPlan:
        """The plan with the sources of now, and what they say of themselves."""
        settings = self._receiver.settings
        if sources:
            try:
                mine = dealt(sources, self._plan.rank, len(self._plan.ranks))
            except ConfigError as error:
                raise StandbyError(str(error)) from error
            settings = replace(settings, sources=mine)
        return self._receiver.plan(self._local, settings)

    def _write(self, reload: Callable[..., Any], named: list[Named]) -> None:
        if named:
            model, _ = self._held()
            with self._late():
                reload(weights_iterator=HandOver(model, named, compat.drop_packed))
            left = [
                path for path in self._packed if not compat.is_packed(model.get_submodule(path))
            ]
            if left:
                raise StandbyError(f"vLLM's reload has not packed {len(left)} layers: {left[0]}")

    @contextmanager
    def _late(self) -> Iterator[None]:
        """Tell when what is done inside the block does not end: nothing can interrupt vLLM."""
        timeout_s = self._receiver.settings.agree_timeout_s
        why = f"vLLM's reload has not ended within {timeout_s:g} s (AGREE_TIMEOUT_S)"
        fields = {
            "netloader.rank": self._plan.rank,
            "netloader.detail": f"{why}; restart this instance",
        }
        told = (self._receiver.logger, "netloader.standby.late", fields)
        timer = threading.Timer(timeout_s, emit, told)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _held(self) -> tuple[nn.Module, Reloadable]:
        model = self._model()
        before = None if model is None else remembered(model)
        if model is None or before is None:
            raise StandbyError("the model is gone")
        return model, before

    def _in_step(self, step: str, work: Callable[[], Done]) -> Done:
        """Do the part of this rank in a step; return when all ranks have done theirs.

        Raises:
            StandbyError: one has not, or not in time.
        """
        done: list[Done] = []
        why = ""
        try:
            done.append(work())
        except NetloaderError as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - vLLM raises what it likes; placeholders stay
            emit(self._receiver.logger, "netloader.driver.error", exc_info=error)
            why = f"{step} failed here: {type(error).__name__}: {error}"
        together = self._agree(f"standby/{self._fills}/{step}", why)
        if why or not together:
            raise StandbyError(why or OTHER_RANK)
        return done[0]

    def _agree(self, name: str, why: str) -> bool:
        ranks = self._plan.ranks
        if len(ranks) == 1:
            return not why
        timeout_s = self._receiver.settings.agree_timeout_s
        try:
            return agree.all_of(not why, name, ranks, timeout_s)
        except agree.DisagreementError as late:
            raise StandbyError(why or str(late)) from late


def _no_source(plan: LoadPlan) -> str:
    if plan.refused is not None:
        return f"no source delivered: {plan.refused.history()}"
    return plan.unfound or "no source is named for this rank: name one, or set SOURCE"


def _fields(report: Report) -> dict[str, object]:
    return {
        "netloader.rank": report["rank"],
        "netloader.transfer.bytes": report["bytes"],
        "netloader.duration_s": round(report["receive_s"] + report["write_s"], 3),
    }
