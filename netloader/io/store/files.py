"""A folder of safetensors files as a store. A folder appears when all of it is verified.

Files are mapped into memory: nothing is read before it is sent, and the page cache of the host is
shared with other readers. Do not shorten a mapped file, because the kernel ends a process that
reads beyond its end; write another one and rename it.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from netloader.config import check_type, check_whole, shown
from netloader.errors import WeightsError
from netloader.fsm.manifest import Extent, Manifest, TensorSpec
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.store.base import Values
from netloader.io.store.blocks import BlockStore
from netloader.io.store.folders import NewFolder, mapped
from netloader.io.store.headers import ABOUT, in_order, name_of, spec_of

FILE_BYTES = 5 << 30
"""About how large files are written: as most checkpoints have them."""
MOST_FILE_BYTES = 1 << 50


class FileStore(BlockStore):
    """A folder of safetensors files; make one with `open` or `create`.

    `folder` is its path. Its methods may be called from any thread.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        blocks: Mapping[int, Tensor],
        new: NewFolder | None = None,
    ) -> None:
        super().__init__(manifest, blocks)
        self.folder = folder
        self._new = new

    @classmethod
    def open(cls, folder: str | Path, tensors: Manifest | Iterable[str] | None = None) -> Self:
        """Map the files of a folder, to serve them without a model.

        All tensors are served, in the order of their names, unless `tensors` says which, and in
        which order: names, such as `model.state_dict()`, or a Manifest, whose tensors may be tied.
        If the folder has an index (`*.safetensors.index.json`), its files are those of the index,
        else every `*.safetensors`. They stay mapped until `close`.

        Raises:
            WeightsError: a file is missing or damaged, a dtype is not known, or the files do not
                have what `tensors` names.
            OSError: the folder or a file cannot be read.
            TypeError: an argument cannot be used.
        """
        check_type("folder", folder, str | Path, "give the path of a folder")
        found = mapped(Path(folder))
        known = {name: spec for name, (spec, _) in found.items()}
        manifest = _manifest(Path(folder), known, tensors)
        blocks = {index: found[manifest.tensors[index].name][1] for index in manifest.payload}
        return cls(Path(folder), manifest, blocks)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        manifest: Manifest,
        file_bytes: int = FILE_BYTES,
        beside: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Self:
        """Make a store to be filled, for a folder that does not exist or is empty.

        Its files are written to a hidden folder next to it, which is renamed when every segment is
        verified and on the disk. If the store is closed or garbage before that, they are removed.
        All space is taken at once: `manifest.nbytes`, in files of up to `file_bytes` or a single
        tensor. Tied tensors are written once, under the name of the first. `beside` are further
        files of the folder, by name.

        Raises:
            WeightsError: the folder exists and is not empty, a file cannot be written, or the
                format has no way to store something of the manifest.
            TypeError, ValueError: an argument cannot be used.
        """
        check_type("folder", folder, str | Path, "give the path of a folder")
        check_type("manifest", manifest, Manifest, "give the `manifest` of a store")
        check_whole("file_bytes", file_bytes, 1, MOST_FILE_BYTES)
        check_storable(manifest)
        new = NewFolder(Path(folder), manifest, file_bytes, beside)
        return cls(Path(folder), manifest, new.blocks, new)

    def close(self) -> None:
        """Unmap the files; those of a folder that is not whole are removed. Idempotent."""
        super().close()
        if self._new is not None:
            self._new.discard()

    def check_writable(self) -> None:
        """Refuse files that exist: as `Store.check_writable`."""
        if self._new is None:
            remedy = "fill a new folder: FileStore.create(folder, manifest)"
            raise WeightsError(f"the files in {self.folder} are only read; {remedy}")

    def place(self, extent: Extent) -> Tensor:
        """Where the bytes of an extent belong: as `Store.place`."""
        self._check_filled()
        return super().place(extent)

    def host_view(self, extent: Extent) -> memoryview | None:
        """The same as writable bytes: as `InHostMemory.host_view`."""
        self._check_filled()
        return super().host_view(extent)

    def _check_filled(self) -> None:
        if self._new is None:
            detail = f"the files in {self.folder} are only read"
            raise TransferError(Reason.TRANSFER_FAILED, detail)

    def take_values(self, values: Values) -> Self:
        """Refuse: files hold tensors only. As `Store.take_values`."""
        names = ", ".join(name for name, _ in values)
        detail = f"files cannot hold what is no tensor: {names}"
        raise TransferError(Reason.TRANSFER_FAILED, detail)

    def complete(self) -> None:
        """Write all to the disk and give the folder its name: as `Store.complete`."""
        if self._new is not None:
            try:
                self._new.publish()
            except OSError as error:
                detail = f"{self.folder} cannot be written: {error}"
                raise TransferError(Reason.TRANSFER_FAILED, detail) from error
            self._new = None


def _manifest(
    folder: Path, known: Mapping[str, TensorSpec], tensors: Manifest | Iterable[str] | None
) -> Manifest:
    """What is served of the tensors that files have."""
    if isinstance(tensors, Manifest):
        check_storable(tensors)
        for index in tensors.payload:
            _check_same(
                folder, _known(folder, known, tensors.tensors[index].name), tensors.tensors[index]
            )
        return tensors
    return Manifest(tuple(_known(folder, known, name) for name in _names(known, tensors)))


def _names(known: Mapping[str, TensorSpec], names: Iterable[str] | None) -> list[str]:
    if names is None:
        return sorted(known)
    remedy = "give a list of names, or a Manifest"
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise TypeError(f"tensors is of type {type(names).__name__}; {remedy}")
    chosen = [*names]
    for place, name in enumerate(chosen):
        check_type(f"tensors[{place}]", name, str, remedy)
        if name in chosen[:place]:
            raise WeightsError(f"tensors has {name} twice; leave one out")
    return chosen


def _known(folder: Path, known: Mapping[str, TensorSpec], name: str) -> TensorSpec:
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"they have {len(known)} others"
    raise WeightsError(f"the files in {folder} have no tensor {name}; {hint}")


def _check_same(folder: Path, held: TensorSpec, wanted: TensorSpec) -> None:
    for field in ("dtype", "shape"):
        mine, theirs = getattr(held, field), getattr(wanted, field)
        if mine != theirs:
            where = f"in the files in {folder}, and {theirs} in the manifest"
            raise WeightsError(f"{held.name} has the {field} {mine} {where}")


def check_storable(manifest: Manifest) -> None:
    """Refuse what a file cannot hold as the wire has it, and what no model has: a peer told it."""
    for name, _ in manifest.values:
        raise WeightsError(f"files hold tensors only, and {name} is none; fill a HostStore")
    seen = set[str]()
    for index, spec in enumerate(manifest.tensors):
        if spec.format:
            raise WeightsError(f"{spec.name} is stored as {spec.format}; cast it to ND")
        if name_of(spec.dtype) is None:
            raise WeightsError(f"safetensors has no dtype {spec.dtype}, which {spec.name} has")
        if spec.name in seen or spec.name == ABOUT or not -1 <= spec.shares < index:
            raise WeightsError(f"the manifest is damaged at {shown(spec.name)}; make it again")
        seen.add(spec.name)
        if not _has_shape(spec):
            raise WeightsError(f"{spec.name} has a shape that no tensor of {spec.nbytes} bytes has")
        if not in_order(spec):
            remedy = "store it with contiguous() on both sides, or fill a HostStore"
            raise WeightsError(f"{spec.name} has another memory order than files have; {remedy}")


def _has_shape(spec: TensorSpec) -> bool:
    """Whether there can be a tensor of this shape, and its elements are that many bytes."""
    try:
        like = spec_of(spec.name, getattr(torch, spec.dtype), spec.shape)
        in_order(spec)
    except (RuntimeError, TypeError, OverflowError):
        return False
    return like.nbytes == spec.nbytes and min(spec.stride, default=0) >= 0
