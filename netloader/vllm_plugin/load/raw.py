"""The raw layout: parameters as the loader left them, kept through post-processing.

Only what provably was loaded is offered. Before post-processing every segment is digested;
afterwards a tensor is found again by its storage, never by name and shape, because kernels replace
parameters under the same name and shape with permuted bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from netloader.fsm.manifest import Manifest, segments_of
from netloader.io.comparing import segment_digests
from netloader.io.cores import cores
from netloader.io.store.digests import published_with
from netloader.io.store.module import ModuleStore, Named, WeightsError
from netloader.vllm_plugin.config.settings import CachePolicy, Keeping
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.places import revived
from netloader.vllm_plugin.serve.kept import Kept, layer_at, uses

SMALL_BYTES = 64 * 1024
"""Tensors up to this size are backed up before a source may write: scales, sentinels and constants
that no checkpoint file holds, so the ordinary loader would not write them again."""
SHOWN_NAMES = 5
"""How many lost parameters a message names."""


class GoneError(Exception):
    """Post-processing replaced tensors that were not to be kept; `names` says which."""

    def __init__(self, names: Sequence[str], settings: Sequence[str]) -> None:
        some = ", ".join(names[:SHOWN_NAMES])
        super().__init__(f"{len(names)} parameters were replaced, among: {some}")
        self.names = tuple(names)
        self.settings = tuple(sorted(set(settings)))

    @property
    def remedy(self) -> str:
        """What to set so that the originals are kept."""
        return " and ".join(_REMEDIES[setting] for setting in self.settings)


_REMEDIES = {
    "INT8_CACHE": "set INT8_CACHE to dram",
    "INT8_CACHE_NAME": "name them in INT8_CACHE_NAME, or leave it out",
    "WEIGHT_CACHE": "set WEIGHT_CACHE to dram",
}


@dataclass(frozen=True, slots=True)
class Held:
    """A raw tensor: kept alive (`kept`), or watched by a weak reference and geometry."""

    name: str
    kept: Tensor | None
    storage: StorageWeakRef
    nbytes: int
    """Of the storage."""
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    setting: str
    """What decides whether it is kept."""

    @classmethod
    def of(cls, name: str, tensor: Tensor, kept: Tensor | None = None, setting: str = "") -> "Held":
        """Hold a tensor."""
        plain = tensor.detach()
        storage = plain.untyped_storage()
        return cls(
            name=name,
            kept=kept,
            storage=StorageWeakRef(storage),  # type: ignore[no-untyped-call]
            nbytes=storage.nbytes(),
            dtype=plain.dtype,
            offset=int(plain.storage_offset()),
            shape=plain.shape,
            stride=plain.stride(),
            setting=setting,
        )

    def find(self) -> Tensor | None:
        """The tensor as it was loaded: where it was, if that is still alive, or the kept one."""
        storage = revived(self.storage)
        if storage is None or storage.nbytes() != self.nbytes:
            return self.kept
        return _view(storage, self.dtype, self.offset, self.shape, self.stride)


def _view(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: int,
    shape: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    nothing = torch.empty(0, dtype=dtype, device=storage.device)
    return nothing.set_(storage, offset, shape, stride)


class _Keeper:
    """Keeps originals; storage that tensors share is kept, or copied, once."""

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping
        self._copies: dict[int, Any] = {}

    def hold(self, name: str, tensor: Tensor) -> Held:
        policy, setting = policy_for(name, tensor, self._keeping)
        return Held.of(name, tensor, self._kept(tensor.detach(), policy), setting)

    def _kept(self, plain: Tensor, policy: CachePolicy) -> Tensor | None:
        if policy is CachePolicy.NO:
            return None
        storage = plain.untyped_storage()
        if policy is CachePolicy.HBM or plain.device.type == "cpu":
            return plain
        if storage.data_ptr() not in self._copies:
            self._copies[storage.data_ptr()] = storage.cpu()  # type: ignore[no-untyped-call]
        copy = self._copies[storage.data_ptr()]
        offset = int(plain.storage_offset())
        return _view(copy, plain.dtype, offset, plain.shape, plain.stride())


def policy_for(name: str, tensor: Tensor, keeping: Keeping) -> tuple[CachePolicy, str]:
    """Where the original of a tensor is kept if it is replaced, and which setting says so."""
    if tensor.dtype is torch.int8:
        wanted = keeping.int8_names
        if wanted and not any(part in name for part in wanted):
            return CachePolicy.NO, "INT8_CACHE_NAME"
        return keeping.int8, "INT8_CACHE"
    return keeping.others_on(tensor.device.type), "WEIGHT_CACHE"


def algorithm_of(keeping: Keeping) -> str:
    """What originals are digested with: what the server will publish them with."""
    return published_with(keeping.digest, keeping.token)[0]


class RawSnapshot:
    """Every tensor of a model between loading and post-processing, with its digests."""

    def __init__(
        self,
        named: Sequence[Named],
        keeping: Keeping,
        known: tuple[str, ...] = (),
        tables: Iterable[Tensor] = (),
    ) -> None:
        weights = ModuleStore(named)
        self.manifest: Manifest = weights.manifest
        self.digests = known or segment_digests(
            weights,
            segments_of(self.manifest, keeping.segment_bytes),
            algorithm_of(keeping),
            cores(),
        )
        keeper = _Keeper(keeping)
        self._held = [keeper.hold(name, tensor) for name, tensor in named]
        self._tables = [StorageWeakRef(table.untyped_storage()) for table in tables]  # type: ignore[no-untyped-call]

    def after(self, model: nn.Module) -> Kept:
        """The same tensors after post-processing.

        Raises:
            GoneError: a tensor is needed that was replaced and not kept.
            WeightsError: what is left is not what was loaded.
        """
        found = [(held, held.find()) for held in self._held]
        gone = [held for held, tensor in found if tensor is None]
        if gone:
            raise GoneError([held.name for held in gone], [held.setting for held in gone])
        named = [(held.name, tensor) for held, tensor in found if tensor is not None]
        weights = ModuleStore(named)
        if weights.manifest != self.manifest:
            raise WeightsError("post-processing changed the geometry of raw tensors")
        detached = {n: t for n, t in named if not uses(layer_at(model, n), n, t)}
        live = in_use(model) if detached else set()
        ours = {
            name: tensor.untyped_storage()
            for name, tensor in detached.items()
            if tensor.untyped_storage().data_ptr() not in live
        }
        sizes = {storage.data_ptr(): storage.nbytes() for storage in ours.values()}
        return Kept(
            tuple(named),
            weights,
            frozenset(ours),
            sum(sizes.values()),
            frozenset(detached),
            self._constants({tensor.untyped_storage().data_ptr() for _, tensor in named}),
        )

    def _constants(self, travelling: set[int]) -> tuple[StorageWeakRef, ...]:
        found = ((table, revived(table)) for table in self._tables)
        return tuple(t for t, s in found if s is not None and s.data_ptr() not in travelling)


def in_use(model: nn.Module) -> set[int]:
    """Where the storage is that a model itself keeps alive."""
    tensors = inventory.take(model).tensors.values()
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if not tensor.is_meta}


class Backup:
    """Copies of a model's small tensors, to undo what a failed source may have written.

    `most` is how many bytes a small one may have.
    """

    def __init__(self, named: Sequence[Named], most: int = SMALL_BYTES) -> None:
        self._copies = [
            (tensor, tensor.detach().clone())
            for _, tensor in named
            if tensor.numel() * tensor.element_size() <= most
        ]

    def restore(self) -> None:
        """Put the copies back."""
        with torch.no_grad():
            for tensor, copy in self._copies:
                tensor.copy_(copy)
