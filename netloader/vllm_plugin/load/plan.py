"""Decide how one model is loaded, before it is built: ask the sources once, then fix the plan."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from json import loads
from pathlib import Path

from torch import nn
from vllm.distributed import get_tp_group, get_world_group, parallel_state

from netloader.config import Endpoint, shown
from netloader.discovery.lookup import Lookup
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Progress
from netloader.fsm.messages import Description
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io.describe import Described
from netloader.io.outcome import Attempt, Outcome
from netloader.io.own_folder import OwnFolder
from netloader.io.store.module import Named
from netloader.log import Logger, emit, get_logger
from netloader.vllm_plugin.config.settings import LayoutChoice, Settings
from netloader.vllm_plugin.identity import compare
from netloader.vllm_plugin.identity import identity as identities
from netloader.vllm_plugin.identity.files import Files
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.inventory import Inventory
from netloader.vllm_plugin.load import load_state, processed, provenance
from netloader.vllm_plugin.load.display import tell_differences, tell_warnings
from netloader.vllm_plugin.load.looking import Sources, look
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.serve import port
from netloader.vllm_plugin.serve.announcing import Place
from netloader.vllm_plugin.serve.refusal import refuse
from netloader.vllm_plugin.serve.worker import this_worker


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How one model is loaded: this rank, the sources to ask, the description of the first one."""

    role: str
    rank: int
    ranks: tuple[int, ...]
    """`torch.distributed` ranks that load this model together."""
    sources: tuple[Endpoint, ...]
    layout: str
    state: load_state.State
    """What the server's `load_weights` left behind."""
    unfilled: frozenset[str]
    """Parameters that no checkpoint fills, so that no bytes are sent for them."""
    identify: Callable[[str, load_state.State], Identity]
    """Our identity in a layout and with a state; computed anew on each call, because a
    reload may have changed the checkpoint."""
    serves: bool
    """Whether this rank is to be a server itself, so that originals are kept and digested."""
    path: str
    """The checkpoint the model was configured with."""
    silent: tuple[Attempt, ...] = ()
    """Attempts with sources that let a deadline pass when they were asked what they resolved."""
    filled: frozenset[str] = frozenset()
    """Tensors outside parameters and buffers that the server's `load_weights` has filled."""
    constructed: str = ""
    """What the server says of how its model was constructed, see `provenance`."""
    files: Files = field(default_factory=lambda: Files(None))
    """Those of the model's folder."""
    names: tuple[str, str] = ("", "")
    """What instances call the model (`MODEL`), and what requests call it."""
    answers: Callable[[], Mapping[str, str]] = dict
    """The facts that change answers but no number of the model, for clients to be warned by."""
    untied: bool = False
    """Whether the embeddings are untied because the checkpoint holds an `lm_head`."""
    refused: Outcome | None = None
    """The sources that serve another model; they are not among `sources`."""
    lookup: Lookup | None = None
    """Names further sources while a fetch runs."""
    unfound: str = ""
    """Why sources could not be looked up; empty where they could."""
    place: Place | None = None
    """Where a registry names this rank once it serves the model, and what waits for that."""
    folders: tuple[OwnFolder, ...] = ()
    """Those of this host that are among `sources`, until `without_folders`."""
    damaged: frozenset[Path] = frozenset()
    """Those of them that held other bytes than their cards say, from `without_folders` on."""
    warned: tuple[str, ...] = ()
    """Names of what makes the first source answer the same request otherwise."""

    def abandon(self) -> None:
        """Nothing is going to be served of this model, if it is not by now."""
        this_worker().abandon(self.role)
        if self.place is not None and self.place.claim is not None:
            self.place.claim.release()

    @contextmanager
    def using_folders(self) -> Iterator[None]:
        """A block in which folders of this host may be sources; afterwards they are closed."""
        try:
            yield
        finally:
            for folder in self.folders:
                folder.close()

    @property
    def without_folders(self) -> "LoadPlan":
        """The plan of a later load, when they are closed: they held the weights of this one."""
        own = {folder.endpoint for folder in self.folders}
        left = tuple(source for source in self.sources if source not in own)
        damaged = frozenset(f.folder.resolve() for f in self.folders if f.damaged)
        return replace(self, sources=left, folders=(), damaged=damaged)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Note which files of the folder are read while the model is built, until `built`.

        They may become part of the model without being among the tensors that a source sends.
        """
        with self.files.watching():
            yield

    @property
    def identity(self) -> Identity:
        """Our identity, in the layout and with the state of the source."""
        return self.identify(self.layout, self.state)

    def tensors(self, model: nn.Module, found: Inventory | None = None) -> list[Named]:
        """The raw tensors that travel; `found` is a walk over the model, if there was one."""
        found = found or inventory.take(model)
        named = provenance.travelling(model, found, self.filled, self.state)
        return [(name, tensor) for name, tensor in named if name not in self.unfilled]


def plan_load(
    model: LocalModel,
    settings: Settings,
    ask: Callable[[Sequence[Endpoint], Identity], Described],
    logger: Logger,
) -> LoadPlan:
    """Ask the sources what they resolved, and have vLLM build the same parameters here."""
    side = _Side(model, logger)
    serves = port.wanted(settings.listen_port, model.rank) and _steady(model)
    found = look(model, settings, logger, serves=serves)
    describe, refused = side.describe(found, ask)
    facts = describe.description.facts if describe.description else {}
    model.checkpoint.adopt(facts)
    draft = model.role == identities.DRAFT
    return LoadPlan(
        role=model.role,
        rank=model.rank,
        ranks=_company(model.role),
        sources=describe.sources,
        layout=_layout(facts, settings.layout, model.device_type),
        state=_state(facts, logger),
        unfilled=_names(identities.UNFILLED, facts, logger) if draft else frozenset(),
        identify=partial(side.identity, describe.description),
        serves=serves,
        path=model.path,
        silent=describe.silent,
        filled=_names(identities.FILLED, facts, logger),
        constructed=facts.get(identities.CONSTRUCTED, ""),
        files=model.files,
        names=(model.early.hard["model"], model.served_name),
        answers=side.answers,
        untied=model.checkpoint.untied,
        refused=refused,
        lookup=found.lookup,
        unfound=found.unfound,
        place=found.place,
        folders=found.folders,
        warned=side.warn(describe),
    )


def looked_up_again(plan: LoadPlan) -> LoadPlan:
    """The plan with the sources of now, where they are looked up. Blocks as `looking.look`."""
    if plan.lookup is None:
        return plan
    looked = plan.lookup.look()
    sources = looked.sources or plan.sources
    return replace(plan, sources=sources, unfound="; ".join(looked.problems))


@dataclass(frozen=True, slots=True)
class _Side:
    """Our side of a comparison with a source, before and after the model is built."""

    model: LocalModel
    logger: Logger

    def identity(
        self,
        description: Description | None,
        layout: str,
        state: load_state.State,
    ) -> Identity:
        """Ours, with the files that count for the source that described itself."""
        files = self.model.files.needed()
        if description is not None:
            told = compare.parse(description.facts.get(compare.ANSWERS, ""))
            files = compare.files_for(self.model.files, description.identity, told)
        return self.model.identity(layout, load_state.digest(state), files)

    def describe(
        self,
        sources: Sources,
        ask: Callable[[Sequence[Endpoint], Identity], Described],
    ) -> tuple[Described, Outcome | None]:
        """Ask for a description until one fits; the sources that do not fit, with the reasons.

        The config is compared here, not by the source: only this side can say what to do about it.
        """
        asked = Identity({name: self.model.early.hard[name] for name in compare.ASKED})
        refused: list[Attempt] = [*sources.unreachable]
        left, later = sources.now, sources.now[:0]
        describe = Described(None, ())
        try:
            while left:
                describe = ask(left, asked)
                refused += describe.other_parts
                found = self._differences(describe.description) if describe.description else ()
                if not found:
                    break
                other, *rest = describe.sources
                refused.append(_refusal(other, found))
                left = describe.untried
                later += tuple(rest[len(left) :])
                describe = Described(None, left)
        except Exception as error:  # noqa: BLE001 - a bug in netloader costs a source, not an engine
            emit(self.logger, "netloader.driver.error", exc_info=error)
            describe = Described(None, left)
        describe = replace(describe, sources=(*describe.sources, *later))
        if not refused:
            return describe, None
        none = Progress()
        outcome = Outcome(State.FALLBACK, Reason.NO_SOURCE, tuple(refused), 0, False, none)
        tell_differences(outcome, self.logger)
        return describe, outcome

    def _differences(self, description: Description) -> tuple[Difference, ...]:
        mine = self.identity(description, identities.RAW, load_state.NOTHING)
        told = compare.parse(description.facts.get(compare.ANSWERS, ""))
        return compare.differences(mine, description.identity, self.model.overridden, told)

    def answers(self) -> Mapping[str, str]:
        """The facts for clients; none if vLLM cannot tell them."""
        try:
            return {compare.ANSWERS: compare.answers_of(self.model).render()}
        except Exception as error:  # noqa: BLE001 - a warning less; the weights are right
            emit(self.logger, "netloader.driver.error", exc_info=error)
            return {}

    def warn(self, describe: Described) -> tuple[str, ...]:
        """Log in what a source would answer otherwise to the same request; the names of that."""
        facts = describe.description.facts if describe.description else {}
        theirs = compare.parse(facts.get(compare.ANSWERS, ""))
        if theirs is None:
            return ()
        try:
            mine = compare.answers_of(self.model)
        except Exception as error:  # noqa: BLE001 - a warning less; the weights are right
            emit(self.logger, "netloader.driver.error", exc_info=error)
            return ()
        found = compare.warnings(mine, theirs)
        tell_warnings(describe.sources[0], found, self.logger)
        return tuple(difference.field for difference in found)


def _refusal(source: Endpoint, found: tuple[Difference, ...]) -> Attempt:
    names = ", ".join(shown(difference.field).strip("'\"") for difference in found)
    return Attempt(source, Reason.IDENTITY_MISMATCH, f"differing: {names}", 0, {}, found)


def _steady(model: LocalModel) -> bool:
    """Whether weights stay the same while this instance runs; logs why not, for it cannot serve."""
    why, remedy = model.unsteady
    if why:
        refuse(get_logger("server", LOG_BASE), why, remedy)
    return not why


def _layout(facts: Mapping[str, str], choice: LayoutChoice, device_type: str) -> str:
    """The server's where it can be received; else raw, and the server will refuse."""
    wanted = choice is not LayoutChoice.RAW and processed.allowed(device_type)
    theirs = facts.get(identities.LAYOUT) == identities.PROCESSED
    return identities.PROCESSED if theirs and wanted else identities.RAW


def _state(facts: Mapping[str, str], logger: Logger) -> load_state.State:
    try:
        return load_state.parse(facts.get(identities.STATE, ""))
    except load_state.StateError as error:  # the identities will differ, and say in what
        emit(logger, "netloader.source.odd", {"netloader.detail": str(error)})
        return load_state.NOTHING


def _names(fact: str, facts: Mapping[str, str], logger: Logger) -> frozenset[str]:
    """A fact that is a list of names of tensors, as JSON."""
    try:
        names = loads(facts.get(fact, "[]"))
    except (ValueError, RecursionError):
        names = None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return frozenset(names)
    detail = f"the tensors that the source calls {fact} are no list of names"
    emit(logger, "netloader.source.odd", {"netloader.detail": detail})  # the manifests will differ
    return frozenset()


def _company(role: str) -> tuple[int, ...]:
    """The ranks that load this model together: a draft lives on the last pipeline stage only."""
    if not parallel_state.model_parallel_is_initialized():
        return (0,)
    group = get_tp_group() if role == identities.DRAFT else get_world_group()
    return tuple(group.ranks)
