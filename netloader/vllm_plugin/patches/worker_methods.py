"""Weights that change under the server. Law: while they change nothing is offered.

vLLM changes weights in place through a few methods of its worker class: reload, updates by a
trainer, sleep. Frameworks that train call the runner's `reload_weights` or the model's own
`load_weights` instead. Each is wrapped once, in the worker's process, so that the offer ends and
nobody reads any more before the method begins, and returns after it has ended. They call one
another: the outermost call counts. What is written past all of them is found by the usage record
and the digests.
"""

from collections.abc import Callable, Generator, Mapping
from functools import wraps
from typing import Any

from torch import nn
from vllm.utils.import_utils import resolve_obj_by_qualname

from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.serve.harmless import harmless
from netloader.vllm_plugin.serve.worker import this_worker

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
LOAD = "load_weights"
"""The method of models, and of their modules, that reads tensors of a checkpoint."""
SLEEP, DISCARD, WAKE = "sleep", "discard", "wake_up"
"""Sleep takes the memory away; awake, the bytes are what they were, or a reload has to come."""
WEIGHTS_TAG = "weights"
WARMS_UP = "compile_or_warm_up_model"
"""What an engine calls on its worker last, before it serves."""
CLOSES = ("destroy_worker_extension", "shutdown")
"""What ends a worker. From 0.33 on vLLM calls the first, where a worker extension has it, before
the second; either may free what clients read."""


def install_in(qualified_name: str) -> None:
    """Wrap the methods of the worker class that vLLM's configuration names.

    Where there is no such class (`auto`, say), no worker will call them.
    """
    try:
        worker_class: type = resolve_obj_by_qualname(qualified_name)
    except (ImportError, AttributeError, ValueError):
        return
    install(worker_class)


def install(worker_class: type) -> None:
    """Wrap the methods of a worker class that change weights; a second call changes nothing."""
    wrappers: dict[str, Callable[[Method, str], Method]] = {
        **dict.fromkeys(CHANGES, _changing),
        **dict.fromkeys(BEGINS, _beginning),
        ADDS: _adding,
        ENDS: _ending,
        SLEEP: _sleeping,
        DISCARD: _discarding,
        WAKE: _waking,
        **dict.fromkeys(CLOSES, _closing),
        WARMS_UP: _warming,
    }
    _wrap(worker_class, wrappers)


def install_on_runner(runner_class: type) -> None:
    """Wrap the methods of a model runner that change weights; once, as `install`."""
    _wrap(runner_class, dict.fromkeys(RUNNER_CHANGES, _reloading))


def install_on(model: nn.Module) -> None:
    """Wrap the methods by which a model, or a module of it, loads tensors of a checkpoint.

    In their classes, not in the instances: there a reload puts methods of its own.
    """
    for kind in {type(module) for module in model.modules()}:
        _wrap(kind, {LOAD: _loading})


def _wrap(kind: type, wrappers: Mapping[str, Callable[[Method, str], Method]]) -> None:
    for name, wrap in wrappers.items():
        method = getattr(kind, name, None)
        if method is not None and not hasattr(method, "netloader_fence"):
            fenced = wrap(method, name)
            fenced.netloader_fence = True  # type: ignore[attr-defined]
            setattr(kind, name, fenced)


def _changing(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        ours = this_worker()
        with (
            ours.after_reload.reloading(),
            ours.changing(CHANGES[name], f"{name} changes the weights"),
        ):
            return method(worker, *args, **kwargs)

    return fenced


def _reloading(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(runner: Any, *args: Any, **kwargs: Any) -> Any:
        ours = this_worker()
        with (
            ours.after_reload.reloading(),
            ours.changing((TARGET,), f"{name} changes the weights"),
        ):
            return method(runner, *args, **kwargs)

    return fenced


def _loading(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(module: Any, *args: Any, **kwargs: Any) -> Any:
        ours = this_worker()
        if ours.all_changing:
            return method(module, *args, **kwargs)
        with ours.changing_part(module, f"{name} changes the weights"):
            result = method(module, *args, **kwargs)
            return iter([*result]) if isinstance(result, Generator) else result

    return fenced


def _beginning(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        ours = this_worker()
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
        with this_worker().update_ends_on_error():
            return method(worker, *args, **kwargs)

    return fenced


def _ending(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(worker, *args, **kwargs)  # when it fails, vLLM lets it be tried again
        this_worker().end_update()
        return result

    return fenced


def _sleeping(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        this_worker().fence_for_sleep("the instance is asleep")
        return method(worker, *args, **kwargs)

    return fenced


def _discarding(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, tags: Any, *args: Any, **kwargs: Any) -> Any:
        if WEIGHTS_TAG in tags:
            this_worker().fence_for_sleep("the weights were discarded")
        return method(worker, tags, *args, **kwargs)

    return fenced


def _closing(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        this_worker().fence("the instance shuts down")
        return method(worker, *args, **kwargs)

    return fenced


def _waking(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, tags: Any = None, **kwargs: Any) -> Any:
        ours = this_worker()
        with ours.off_the_device("the instance wakes up"):
            result = method(worker, tags, **kwargs)
        if tags is None or WEIGHTS_TAG in tags:
            ours.resume()
        return result

    return fenced


def _warming(method: Method, name: str) -> Method:
    del name
    this_worker().warm_up.expect()

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(worker, *args, **kwargs)
        with harmless():
            this_worker().warm_up.done()
            if hasattr(worker, "model_runner"):
                install_on_runner(type(worker.model_runner))
        return result

    return fenced
