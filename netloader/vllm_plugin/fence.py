"""Weights that change under the server. Law: while they change nothing is offered.

vLLM changes weights in place through a few methods of its worker class: reload, updates by a
trainer, sleep. Frameworks that train call the runner's `reload_weights` or the model's own
`load_weights` instead. Each is wrapped once, in the worker's process, so that the offer ends and
nobody reads any more before the method begins, and returns after it has ended. They call one
another: the outermost call counts. What is written past all of them, the witness and the digests
find out.
"""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

from torch import nn
from vllm.utils.import_utils import resolve_obj_by_qualname

from netloader.io.store.module import ModuleStore, WeightsError
from netloader.log import emit, get_logger
from netloader.vllm_plugin import LOG_BASE, publish, warmup
from netloader.vllm_plugin.goods import KNOWN_S, Changed, watched
from netloader.vllm_plugin.identity import DRAFT, TARGET
from netloader.vllm_plugin.publish import Shop
from netloader.vllm_plugin.refills import REFILLS

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
ASLEEP_S = 10.0
"""How long sleep waits until it is known what the kernels hold, without which nothing is offered
when the instance is awake again."""
SLEEP, DISCARD, WAKE = "sleep", "discard", "wake_up"
"""Sleep takes the memory away; awake, the bytes are what they were, or a reload has to come."""
WEIGHTS_TAG = "weights"
CLOSES = ("destroy_worker_extension", "shutdown")
"""What ends a worker. From 0.33 on vLLM calls the first, where a worker extension has it, before
the second; either may free what clients read."""


@dataclass(slots=True)
class _Change:
    """A change under way: whose weights, and what is seen of it."""

    shop: Shop
    stack: ExitStack = field(default_factory=ExitStack)
    seen: dict[str, Changed] = field(default_factory=dict)

    def begin(self, roles: Iterable[str], why: str) -> None:
        """Offer nothing of these roles any more; of those that do not change already."""
        for role in roles:
            goods = self.shop.goods(role)
            if goods is not None and role not in self.shop.changing:
                self.shop.changing.add(role)
                self.stack.callback(self.shop.changing.discard, role)
                goods.witness.wait(KNOWN_S)
                self.shop.fence(role, why)
                self.seen[role] = self.stack.enter_context(watched(goods))

    def abandon(self) -> None:
        """The change came to nothing: offer again, if every byte is what it was."""
        self.stack.close()
        for role, changed in self.seen.items():
            changed.originals.clear()  # on their way, and perhaps never used
            changed.processed.clear()
            self._settle(role, changed, partial(self._resume, role))

    def end(self) -> None:
        """Offer what the weights are now."""
        self.stack.close()
        for role, changed in self.seen.items():
            self._settle(role, changed, partial(self.shop.renew, role))

    def _resume(self, role: str, weights: ModuleStore) -> None:
        del weights  # those on offer before: their digests are known
        self.shop.resume(role)

    def _settle(self, role: str, changed: Changed, offer: Callable[[ModuleStore], None]) -> None:
        goods = self.shop.goods(role)
        if goods is None:
            return
        goods.witness.resume()
        try:
            weights = goods.renew(changed)
        except (WeightsError, InterruptedError) as error:
            self.shop.lose(role, str(error))
        else:
            offer(weights)


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
        warmup.METHOD: _warming,
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
        why = f"{name} changes the weights"
        with REFILLS.around(), _change(CHANGES[name], why):
            return method(worker, *args, **kwargs)

    return fenced


def _reloading(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(runner: Any, *args: Any, **kwargs: Any) -> Any:
        with REFILLS.around(), _change((TARGET,), f"{name} changes the weights"):
            return method(runner, *args, **kwargs)

    return fenced


def _loading(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(module: Any, *args: Any, **kwargs: Any) -> Any:
        if all(shop.changing.issuperset(shop.roles) for shop in publish.shops()):
            return method(module, *args, **kwargs)
        with _change_of(lambda shop: shop.roles_of(module), f"{name} changes the weights"):
            result = method(module, *args, **kwargs)
            return iter([*result]) if isinstance(result, Generator) else result

    return fenced


def _beginning(method: Method, name: str) -> Method:
    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        if _update.begun:  # vLLM will refuse a second one
            return method(worker, *args, **kwargs)
        _update.begin(BEGINS[name], f"{name} was called, and no end yet")
        with _update.over_if_it_fails():
            return method(worker, *args, **kwargs)

    return fenced


def _adding(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with _update.over_if_it_fails():
            return method(worker, *args, **kwargs)

    return fenced


def _ending(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(worker, *args, **kwargs)  # when it fails, vLLM lets it be tried again
        _update.end()
        return result

    return fenced


def _sleeping(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        _know_what_kernels_hold()
        _fence_all("the instance is asleep")
        return method(worker, *args, **kwargs)

    return fenced


def _discarding(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, tags: Any, *args: Any, **kwargs: Any) -> Any:
        if WEIGHTS_TAG in tags:
            _know_what_kernels_hold()
            _fence_all("the weights were discarded")
        return method(worker, tags, *args, **kwargs)

    return fenced


def _closing(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        _fence_all("the instance shuts down")
        return method(worker, *args, **kwargs)

    return fenced


def _know_what_kernels_hold() -> None:
    for shop in publish.shops():
        with _harmless():
            for goods in filter(None, map(shop.goods, shop.roles)):
                goods.witness.wait(ASLEEP_S)


def _fence_all(why: str) -> None:
    for shop in publish.shops():
        with _harmless():
            for role in shop.roles:
                shop.fence(role, why)


def _waking(method: Method, name: str) -> Method:
    del name

    @wraps(method)
    def fenced(worker: Any, tags: Any = None, **kwargs: Any) -> Any:
        with _nobody_reads("the instance wakes up"):
            result = method(worker, tags, **kwargs)
        for shop in publish.shops() if tags is None or WEIGHTS_TAG in tags else ():
            with _harmless():
                for role in shop.roles:
                    shop.resume(role)
        return result

    return fenced


@contextmanager
def _nobody_reads(why: str) -> Iterator[None]:
    """Offer nothing that is on a device inside the block: graphs may be captured, see `warmup`.

    vllm-ascend destroys them when it falls asleep and captures them anew when the cache is awake,
    which may be long after the weights (`SleepWakeupManager`).
    """
    away = [(shop, role) for shop in publish.shops() for role in shop.on_devices()]
    with _harmless():
        for shop, role in away:
            shop.fence(role, why)
    try:
        yield
    finally:
        with _harmless():
            for shop, role in away:
                shop.back(role)


def _warming(method: Method, name: str) -> Method:
    del name
    warmup.WORKER.expect()

    @wraps(method)
    def fenced(worker: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(worker, *args, **kwargs)
        with _harmless():
            warmup.WORKER.done()
            if hasattr(worker, "model_runner"):
                install_on_runner(type(worker.model_runner))
        return result

    return fenced


def _change(roles: tuple[str, ...], why: str) -> AbstractContextManager[None]:
    return _change_of(lambda _: roles, why)


@contextmanager
def _change_of(roles: Callable[[Shop], Iterable[str]], why: str) -> Iterator[None]:
    """Offer nothing of some roles inside the block, and after it what the weights are then.

    When the block fails and weights are half changed, they stay fenced until the next change.
    """
    changes = [_Change(shop) for shop in publish.shops()]
    with _harmless():
        for change in changes:
            change.begin(roles(change.shop), why)
    try:
        yield
    except BaseException:
        for change in changes:
            with _harmless():
                change.abandon()
        raise
    for change in changes:
        with _harmless():
            change.end()


@contextmanager
def _harmless() -> Iterator[None]:
    """A bug of ours must not keep weights from changing; what was fenced stays so."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - see above
        emit(get_logger("server", LOG_BASE), "netloader.driver.error", exc_info=error)


class _Update:
    """The update by a trainer that has begun and not ended; a worker has one at a time."""

    def __init__(self) -> None:
        self._stack: ExitStack | None = None

    @property
    def begun(self) -> bool:
        return self._stack is not None

    def begin(self, roles: tuple[str, ...], why: str) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(_change(roles, why))

    def end(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    @contextmanager
    def over_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            stack, self._stack = self._stack, None
            if stack is not None:
                with suppress(BaseException):  # it raises again what it was told of
                    stack.__exit__(*sys.exc_info())
            raise


_update = _Update()
