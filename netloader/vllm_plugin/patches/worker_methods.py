"""vLLM's methods that load and change weights, wrapped so that nothing is offered meanwhile.

vLLM changes weights in place through a few methods of its worker class: reload, updates by a
trainer, sleep. Frameworks that train call the runner's `reload_weights` or the model's own
`load_weights` instead. Each is wrapped once in its class: before the method begins the offer ends
and no client reads any more, and when it has ended the weights are offered again. These methods
call one another; the outermost call counts. Weights that are written in any other way are found by
the usage record and the digests.

The same wrappers say for which of vLLM's workers a thread runs (`worker_of`).
"""

import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

from torch import nn
from vllm.utils.import_utils import resolve_obj_by_qualname

from netloader.errors import ConfigError
from netloader.vllm_plugin.config.waiting import standby_of
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.patches import compat
from netloader.vllm_plugin.serve.harmless import harmless
from netloader.vllm_plugin.serve.standing import Report
from netloader.vllm_plugin.serve.worker import Worker, current_worker, running_for, this_worker

Method = Callable[..., Any]

CHANGES: Mapping[str, tuple[str, ...]] = {
    "reload_weights": (TARGET,),
    "reset_weights": (TARGET,),
}
"""Worker methods that change weights before they return, and whose."""
BEGINS: Mapping[str, tuple[str, ...]] = {
    "start_weight_update": (TARGET,),
    "start_draft_weight_update": (DRAFT,),
}
"""Worker methods after which weights change until `ENDS` is called."""
ADDS, ENDS = "update_weights", "finish_weight_update"
"""When the first fails, vLLM's update is over, and the weights are neither old nor new."""
RUNNER_CHANGES = ("reload_weights",)
"""Methods of a worker's model runner that change the target's weights before they return."""
LOADS = "load_model"  # it calls the loader
LOAD = "load_weights"
"""The method of models, and of their modules, that reads tensors of a checkpoint."""
SLEEP, DISCARD, WAKE = "sleep", "discard", "wake_up"
"""Sleep takes the memory away; awake, the bytes are what they were, or a reload has to come."""
WEIGHTS_TAG = "weights"
MEASURES = "determine_available_memory"
"""What an engine asks its worker once, before it makes the KV cache: its bytes."""
WARMS_UP = "compile_or_warm_up_model"
"""What an engine calls on its worker last, before it serves."""
EXECUTES = "execute_model"  # a step of the engine
CLOSES = ("destroy_worker_extension", "shutdown")
"""What ends a worker. From 0.33 on vLLM calls the first, where a worker extension has it, before
the second; either may free what clients read."""

NOT_ASKED_TO = "this instance was not started with STANDBY"
LOST = "STANDBY is set, and this rank knows of no model that waits; restart this instance"

HELD = "_netloader_worker"
"""The attribute of vLLM's workers and model runners that holds our `Worker`."""
FENCED = "netloader_fence"
"""The attribute by which a wrapped method is known; it holds what the wrapper remembers."""


def worker_of(holder: Any) -> Worker:
    """Our object for a worker of vLLM or its model runner; made where there is none yet.

    It is the one of the running thread if that has one: then a loader ran before its worker's
    methods were wrapped.
    """
    ours: Worker | None = getattr(holder, HELD, None)
    if ours is None:
        ours = vars(holder)[HELD] = current_worker() or Worker()
    return ours


@contextmanager
def _running(holder: Any) -> Iterator[Worker]:
    with running_for(worker_of(holder)) as ours:
        yield ours


def expect_warm_up(qualified_names: Iterable[str]) -> None:
    """Wrap the classes of these names, and have offers wait where the worker will warm up.

    Where there is no class of a name (`auto`, say), no worker will call its methods.
    """
    for name in qualified_names:
        try:
            worker_class: type = resolve_obj_by_qualname(name)
        except (ImportError, AttributeError, ValueError):
            continue
        install(worker_class)
        if hasattr(worker_class, WARMS_UP):
            this_worker().warm_up.expect()


def install(worker_class: type) -> None:
    """Wrap the methods of a worker class that change weights; a second call changes nothing."""
    wrappers: dict[str, Callable[[Method, str], Method]] = {
        LOADS: _loading_model,
        **dict.fromkeys(CHANGES, _changing),
        **dict.fromkeys(BEGINS, _beginning),
        ADDS: _adding,
        ENDS: _ending,
        SLEEP: _sleeping,
        DISCARD: _discarding,
        WAKE: _waking,
        **dict.fromkeys(CLOSES, _closing),
        MEASURES: _measuring,
        WARMS_UP: _warming,
        EXECUTES: _executing,
    }
    _wrap(worker_class, wrappers)
    _add(worker_class)


def _fill(worker: Any, sources: Sequence[str] = ()) -> Report:
    """Fill this rank, if it is on standby; see `Standing.fill`. All ranks are to be called."""
    with _running(worker) as ours:
        if ours.standby is None:
            return _not_waiting(worker)
        return ours.standby.fill(compat.reload_of(worker), sources)


def _standing(worker: Any) -> Report:
    """Whether this rank holds weights."""
    with _running(worker) as ours:
        return _not_waiting(worker) if ours.standby is None else ours.standby.status()


def _not_waiting(worker: Any) -> Report:
    """What a rank says that does not wait. It has its weights only if it was not to wait."""
    try:
        filled = standby_of(worker.load_config) is None
        why = NOT_ASKED_TO if filled else LOST
    except ConfigError as error:
        filled, why = False, f"it is not known whether this rank waits: {error}"
    return Report(rank=worker.rank, filled=filled, why=why)


def _finds_sources(worker: Any) -> bool:
    """Whether this rank, on standby, finds a source that is looked up, or a folder, now."""
    with _running(worker) as ours:
        return ours.standby is not None and ours.standby.finds_sources()


ADDED: Mapping[str, Method] = {
    "netloader_fill": _fill,
    "netloader_standing": _standing,
    "netloader_finds_sources": _finds_sources,
}
"""Methods for `collective_rpc` that vLLM's workers have from us."""


def _add(worker_class: type) -> None:
    with _WRAPPING:
        for name, method in ADDED.items():
            setattr(worker_class, name, method)


def install_on_runner(runner: Any, ours: Worker) -> None:
    """Wrap the methods of a model runner's class that change weights; once, as `install`."""
    vars(runner)[HELD] = ours
    _wrap(type(runner), dict.fromkeys(RUNNER_CHANGES, _reloading))


def install_on(model: nn.Module, ours: Worker) -> None:
    """Wrap the methods by which a model, or a module of it, loads tensors of a checkpoint.

    In their classes, not in the instances: there a reload puts methods of its own.
    """
    for kind in {type(module) for module in model.modules()}:
        _wrap(kind, {LOAD: _loading})
        if load := getattr(kind, LOAD, None):
            getattr(load, FENCED).add(ours)


class _Workers:
    """The workers that have models of a class; keeps none of them alive. Thread-safe."""

    def __init__(self) -> None:
        self._known: weakref.WeakSet[Worker] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, ours: Worker) -> None:
        with self._lock:
            self._known.add(ours)

    def steady(self) -> list[Worker]:
        """Those that serve something that is not being changed yet."""
        with self._lock:
            return [ours for ours in self._known if not ours.all_changing]


_WRAPPING = threading.Lock()
"""Classes belong to the process, and workers may be made in several threads of it."""


def _wrap(kind: type, wrappers: Mapping[str, Callable[[Method, str], Method]]) -> None:
    with _WRAPPING:
        for name, wrap in wrappers.items():
            method = getattr(kind, name, None)
            if method is not None and not hasattr(method, FENCED):
                fenced = wrap(method, name)
                setattr(fenced, FENCED, _Workers())
                setattr(kind, name, fenced)


def _loading_model(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with _running(worker):
            return method(worker, *args, **kwargs)

    return fenced


def _changing(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with (
            _running(worker) as ours,
            ours.after_reload.reloading(),
            ours.changing(CHANGES[name], f"{name} changes the weights"),
        ):
            return method(worker, *args, **kwargs)

    return fenced


def _reloading(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(runner: Any, *args: Any, **kwargs: Any) -> Any:
        with (
            _running(runner) as ours,
            ours.after_reload.reloading(),
            ours.changing((TARGET,), f"{name} changes the weights"),
        ):
            return method(runner, *args, **kwargs)

    return fenced


def _loading(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(module: Any, *args: Any, **kwargs: Any) -> Any:
        steady = getattr(fenced, FENCED).steady()
        if not steady:
            return method(module, *args, **kwargs)
        with ExitStack() as stack:
            for ours in steady:
                stack.enter_context(ours.changing_part(module, f"{name} changes the weights"))
            result = method(module, *args, **kwargs)
            return iter([*result]) if isinstance(result, Generator) else result

    return fenced


def _beginning(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with _running(worker) as ours:
            if ours.updating:  # vLLM will refuse a second one
                return method(worker, *args, **kwargs)
            ours.begin_update(BEGINS[name], f"{name} was called, and no end yet")
            with ours.update_ends_on_error():
                return method(worker, *args, **kwargs)

    return fenced


def _adding(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with _running(worker) as ours, ours.update_ends_on_error():
            return method(worker, *args, **kwargs)

    return fenced


def _ending(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with _running(worker) as ours:
            result = method(worker, *args, **kwargs)  # when it fails, vLLM lets it be tried again
            ours.end_update()
            return result

    return fenced


def _sleeping(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        worker_of(worker).fence_for_sleep("the instance is asleep")
        return method(worker, *args, **kwargs)

    return fenced


def _discarding(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, tags: Any, *args: Any, **kwargs: Any) -> Any:
        if WEIGHTS_TAG in tags:
            worker_of(worker).fence_for_sleep("the weights were discarded")
        return method(worker, tags, *args, **kwargs)

    return fenced


def _closing(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        worker_of(worker).shut_down("the instance shuts down")
        return method(worker, *args, **kwargs)

    return fenced


def _waking(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, tags: Any = None, **kwargs: Any) -> Any:
        ours = worker_of(worker)
        with ours.off_the_device("the instance wakes up"):
            result = method(worker, tags, **kwargs)
        if tags is None or WEIGHTS_TAG in tags:
            ours.resume()
        return result

    return fenced


def _measuring(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        measure = partial(method, worker, *args, **kwargs)
        return worker_of(worker).kv_cache.measured_by(worker, measure)

    return fenced


def _warming(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(worker, *args, **kwargs)
        with harmless():
            ours = worker_of(worker)
            ours.warm_up.done()
            if hasattr(worker, "model_runner"):
                install_on_runner(worker.model_runner, ours)
        return result

    return fenced


def _executing(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def noted(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with worker_of(worker).activity.step():
            return method(worker, *args, **kwargs)

    return noted
