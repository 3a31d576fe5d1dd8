"""The raw layout: parameters as the loader left them, kept through post-processing.

Law: nothing is offered that is not provably what was loaded. Before post-processing every segment
is digested; afterwards a tensor is found again by its storage, never by name and shape, because
kernels replace parameters under the same name and shape with permuted bytes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from netloader.fsm.manifest import Manifest, plan
from netloader.io.digests import ALGORITHMS
from netloader.io.publication import segment_digests
from netloader.io.weights import Weights, WeightsError, named_tensors
from netloader.vllm_plugin.settings import CachePolicy, Settings

SMALL_BYTES = 64 * 1024
"""Tensors up to this size are backed up before a source may write: scales, sentinels and constants
that no checkpoint file holds, so the ordinary loader would not write them again."""


class GoneError(Exception):
    """Post-processing replaced tensors that were not to be kept; `names` says which."""

    def __init__(self, names: Sequence[str], setting: str) -> None:
        super().__init__(f"{len(names)} parameters were replaced, among: {', '.join(names[:5])}")
        self.names = tuple(names)
        self.setting = setting


@dataclass(frozen=True, slots=True)
class _Held:
    """A raw tensor: kept alive (`tensor`), or only watched (its storage weakly, its geometry)."""

    name: str
    tensor: Tensor | None
    storage: StorageWeakRef
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    setting: str

    def find(self) -> Tensor | None:
        """The tensor as it was loaded, if its storage is still alive."""
        if self.tensor is not None:
            return self.tensor
        revive: Any = torch.UntypedStorage._new_with_weak_ptr  # noqa: SLF001 - None when it is gone
        storage = revive(self.storage.cdata)
        if storage is None:
            return None
        nothing = torch.empty(0, dtype=self.dtype, device=storage.device)
        return nothing.set_(storage, self.offset, self.shape, self.stride)


def _hold(name: str, tensor: Tensor, settings: Settings) -> _Held:
    policy, setting = policy_for(name, tensor, settings)
    plain = tensor.detach()
    return _Held(
        name=name,
        tensor=None if policy is CachePolicy.NO else plain,
        storage=StorageWeakRef(plain.untyped_storage()),  # type: ignore[no-untyped-call]
        dtype=plain.dtype,
        offset=int(plain.storage_offset()),
        shape=plain.shape,
        stride=plain.stride(),
        setting=setting,
    )


def policy_for(name: str, tensor: Tensor, settings: Settings) -> tuple[CachePolicy, str]:
    """Where the original of a tensor is kept if it is replaced, and which setting says so."""
    if tensor.dtype is not torch.int8:
        return settings.weight_cache, "WEIGHT_CACHE"
    wanted = settings.int8_cache_name
    if wanted and not any(part in name for part in wanted):
        return CachePolicy.NO, "INT8_CACHE_NAME"
    return settings.int8_cache, "INT8_CACHE"


class RawSnapshot:
    """Every tensor of a model between loading and post-processing, with its digests."""

    def __init__(self, model: nn.Module, settings: Settings, known: tuple[str, ...]) -> None:
        named = named_tensors(model)
        weights = Weights(named)
        self.manifest: Manifest = weights.manifest
        self.digests = known or segment_digests(
            weights,
            plan(self.manifest, settings.segment_mib << 20),
            next(iter(ALGORITHMS)),
            os.cpu_count() or 1,
        )
        self._held = [_hold(name, tensor, settings) for name, tensor in named]

    def after(self, model: nn.Module) -> tuple[Weights, int]:
        """The same tensors after post-processing, and the bytes only this snapshot keeps alive.

        Raises:
            GoneError: a tensor is needed that was replaced and not kept.
        WeightsError: what is left is not what was loaded.
        """
        found = [(held, held.find()) for held in self._held]
        gone = [held for held, tensor in found if tensor is None]
        if gone:
            raise GoneError([held.name for held in gone], gone[0].setting)
        named = [(held.name, tensor) for held, tensor in found if tensor is not None]
        in_use = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        cached = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for _, tensor in named
            if tensor.untyped_storage().data_ptr() not in in_use
        }
        weights = Weights(named)
        if weights.manifest != self.manifest:
            raise WeightsError("post-processing changed the geometry of raw tensors")
        return weights, sum(cached.values())


class Backup:
    """Copies of a model's small tensors, to undo what a failed source may have written."""

    def __init__(self, model: nn.Module) -> None:
        self._copies = [
            (tensor, tensor.detach().clone())
            for _, tensor in named_tensors(model)
            if tensor.numel() * tensor.element_size() <= SMALL_BYTES
        ]

    def restore(self) -> None:
        """Put the copies back."""
        with torch.no_grad():
            for tensor, copy in self._copies:
                tensor.copy_(copy)
