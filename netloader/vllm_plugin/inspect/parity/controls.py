"""Falsifying an engine's weights, so that the comparison can show that it notices.

Everything here runs in a worker.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.parity.rows import part_of
from netloader.vllm_plugin.patches import compat
from netloader.vllm_plugin.patches.instance import Linear, change_packed_product


def models_of(worker: Any) -> dict[str, Any]:
    """A worker's models by role."""
    runner = worker.model_runner
    draft = getattr(getattr(runner, "drafter", None), "model", None)
    models = {"target": runner.get_model(), "draft": draft}
    return {role: model for role, model in models.items() if model is not None}


def erase(worker: Any, role: str) -> None:
    """Set a model's weights to zero: by vLLM's `reset_weights`, where it has that.

    That knows no drafts. What a draft shares with its target is left alone, and what it has packed
    away is cut off.
    """
    if role == "target" and compat.reset_weights(worker):
        return
    models = models_of(worker)
    shared = {id(part) for other in models.keys() - {role} for part in models[other].modules()}
    for part in models[role].modules():
        if role == "target" or id(part) not in shared:
            for parameter in part.parameters(recurse=False):
                parameter.detach().zero_()
            change_packed_product(part, _silenced)  # the packed weight itself is out of reach


def _silenced(function: Linear) -> Linear:
    return lambda *given: function(*given) * 0


def shift(worker: Any, part: str, steps: int) -> None:
    """Move every element of a part's tensors by so many places; the same backwards undoes it.

    Unlike a sign or a factor, this is not cancelled by a second layer or by a norm. A part is what
    the state walk finds below its name (see `rows.part_of`), so a head that hangs outside the tree
    of modules is moved as well. What a layer has packed away moves at its output.
    """
    target = models_of(worker)["target"]
    tensors = list(_own(target, part))
    for tensor in tensors if steps > 0 else reversed(tensors):  # views are undone in reverse order
        tensor.copy_(tensor.reshape(-1).roll(steps).reshape(tensor.shape))
    for path, module in target.named_modules():
        if part_of(path) == part:
            change_packed_product(module, partial(_rolled, steps))


def _own(target: nn.Module, part: str) -> Iterator[Tensor]:
    """The tensors of a part, each memory once."""
    seen: set[int] = set()
    for path, tensor in inventory.take(target).tensors.items():
        if part_of(path) == part and tensor.numel() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor.detach()


def _rolled(steps: int, function: Linear) -> Linear:
    return lambda *given: function(*given).roll(steps, -1)
