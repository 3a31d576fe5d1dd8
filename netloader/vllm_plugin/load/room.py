"""Memory for the raw weights of a model that holds placeholders.

Post-processing leaves most raw tensors where they are. Such a tensor is received where it is: no
second copy, and no new memory, which may be slow to come. Where post-processing has made something
else of a tensor and let it go, it is received beside the model, and vLLM's reload does the rest.

A transfer that fails half way leaves some weights among the placeholders. That costs nothing, for
the model answers no request before it holds all of them; so this is for placeholders only.
"""

from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor

from netloader.errors import UnsafeError
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.io.store.module import Named
from netloader.vllm_plugin.load.raw import Held


class Room:
    """Where the raw tensors of a model are. Made before post-processing. Used from one thread.

    `named` are the raw tensors as `manifest` describes them.
    """

    def __init__(self, named: Sequence[Named], manifest: Manifest) -> None:
        self.manifest = manifest
        self._held = [Held.of(name, tensor) for name, tensor in named]
        self._reserved: list[Tensor] = []
        self._unsafe = ""

    def reserve(self) -> None:
        """Keep the memory that is on the host, whatever post-processing makes of the tensors.

        It is there already, and a fill would need it anyway: the host may take seconds to give a
        gigabyte. The memory of a device is quick to come, and needed for the KV cache.
        """
        found = (held.find() for held in self._held)
        self._reserved = [tensor for tensor in found if tensor is not None and tensor.is_cpu]

    def tensors(self, device: torch.device) -> list[Named]:
        """All raw tensors: where they are, and the others in new memory on `device`.

        Raises:
            UnsafeError: an aborted transfer may still write into them.
        """
        self.check()
        found = ((held.name, held.find()) for held in self._held)
        there = {name: tensor for name, tensor in found if tensor is not None}
        every = {**there, **dict(beside(self.manifest, device, there))}
        return [(spec.name, every[spec.name]) for spec in self.manifest.tensors]

    def check(self) -> None:
        """Refuse to be filled.

        Raises:
            UnsafeError: an aborted transfer may still write.
        """
        if self._unsafe:
            raise UnsafeError(self._unsafe)

    def give_up(self, why: str) -> None:
        """Let nothing be received any more: an aborted transfer may still write."""
        self._unsafe = f"{why}; restart this instance"


def beside(
    manifest: Manifest, device: torch.device, there: Container[str] = frozenset()
) -> list[Named]:
    """Empty tensors as a manifest describes them, aliases included; they take its `nbytes`.

    Those that are `there` are left out.
    """
    sharing: dict[int, list[TensorSpec]] = {}
    for index, spec in enumerate(manifest.tensors):
        if spec.name not in there:
            sharing.setdefault(index if spec.shares < 0 else spec.shares, []).append(spec)
    built = {n: t for specs in sharing.values() for n, t in _in_one_storage(specs, device)}
    return [(spec.name, built[spec.name]) for spec in manifest.tensors if spec.name in built]


def _in_one_storage(specs: Sequence[TensorSpec], device: torch.device) -> Iterator[Named]:
    """Tensors that share memory; the first need not be the one that begins first."""
    dtypes: list[torch.dtype] = [getattr(torch, spec.dtype) for spec in specs]
    places = list(zip(specs, dtypes, strict=True))
    end = max(spec.offset + _extent(spec) * dtype.itemsize for spec, dtype in places)
    begin = min(spec.offset for spec in specs)
    while any((spec.offset - begin) % dtype.itemsize for spec, dtype in places):
        begin -= 1  # where the storage of the other side began, all were aligned
    storage = torch.empty(end - begin, dtype=torch.uint8, device=device).untyped_storage()
    for spec, dtype in places:
        view = torch.empty(0, dtype=dtype, device=device)
        offset = (spec.offset - begin) // dtype.itemsize
        yield spec.name, view.set_(storage, offset, spec.shape, spec.stride)


def _extent(spec: TensorSpec) -> int:
    """Elements from the first to the last one of a tensor, holes included."""
    reach = sum((n - 1) * step for n, step in zip(spec.shape, spec.stride, strict=True))
    return reach + 1 if spec.nbytes else 0
