"""An instance that starts with placeholders, is filled in place, and then offered.

It starts with `FALLBACK: "dummy"` while no source is up, and offers nothing. When a source is up,
vLLM's `reload_weights` fills it: the raw weights are received beside the model, and when the reload
is over they are offered: the model's own tensors where those are bytewise what was received, the
received ones where post-processing has made others of them.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from netloader.io.store.module import Named, WeightsError
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.load.loaded import Loaded
from netloader.vllm_plugin.load.offer import offer
from netloader.vllm_plugin.load.plan import LoadPlan
from netloader.vllm_plugin.load.raw import RawSnapshot


def offer_received(
    model: nn.Module,
    plan: LoadPlan,
    loaded: Loaded,
    settings: Settings,
    named: list[Named],
) -> None:
    """Offer a model that has been reloaded with the raw tensors `named`."""
    live = inventory.take(model).tensors
    chosen = [(name, _live(live.get(name), tensor)) for name, tensor in named]
    try:
        kept = replace(loaded, snapshot=RawSnapshot(chosen, settings.keeping))
    except WeightsError as error:
        kept = replace(loaded, obstacle=str(error))
    offer(model, plan, kept, settings)


def _live(live: Tensor | None, received: Tensor) -> Tensor:
    """The tensor that the kernels use, if it is bytewise what was received."""
    alike = live is not None and (live.dtype, live.shape) == (received.dtype, received.shape)
    if live is None or not alike or live.stride() != received.stride():
        return received
    mine, theirs = (tensor.detach().contiguous().reshape(-1) for tensor in (live, received))
    return live if torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8)) else received
