"""Folders of safetensors files, mapped into memory. An incomplete folder is an error."""

import json
import mmap
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from netloader.errors import WeightsError
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.io.forks import only_here
from netloader.io.store.headers import read_header, write_header

INDEX = "model.safetensors.index.json"


def mapped(folder: Path) -> dict[str, tuple[TensorSpec, Tensor]]:
    """Every tensor of a folder by name, with its bytes (uint8, 1-d).

    Raises:
        WeightsError: a file is missing or damaged, or two files have one name.
        OSError: the folder or a file cannot be read.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder} is no folder; give one with *.safetensors files")
    found: dict[str, tuple[TensorSpec, Tensor]] = {}
    origin: dict[str, Path] = {}
    listed = _listed(folder)
    for path in sorted({*listed.values()}) if listed else sorted(folder.glob("*.safetensors")):
        for name, entry in _tensors_in(path):
            if name in found:
                raise WeightsError(f"{origin[name]} and {path} both have {name}; remove one file")
            found[name], origin[name] = entry, path
    for name, path in listed.items():
        if origin.get(name) != path:
            raise WeightsError(f"{path} has no {name}, though the index names it there")
    if not found:
        raise WeightsError(f"{folder} has no tensors in *.safetensors files")
    return found


def _listed(folder: Path) -> dict[str, Path]:
    """The file of each tensor, by the folder's index; empty for a folder without an index."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
            listed = {name: folder / file for name, file in names.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "write or download it again"
            raise WeightsError(f"{index} is no index of safetensors files; {remedy}") from error
        for path in sorted({*listed.values()}):
            if not path.exists():
                raise WeightsError(f"{path} is missing, and {index.name} names it")
        return listed
    return {}


def _tensors_in(path: Path) -> Iterator[tuple[str, tuple[TensorSpec, Tensor]]]:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise WeightsError(f"{path} is empty; write or download it again")
        # A private mapping: torch warns of memory that it must not write, and nothing writes here.
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    placed = read_header(path, memoryview(memory))
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    for one in placed:
        yield one.spec.name, (one.spec, whole[one.begin : one.begin + one.spec.nbytes])


class HiddenFolder:
    """A folder that appears with all that is in it, or not at all.

    Until then it is at `path`, next to `folder`, which is made by whoever writes there. It is
    removed when it is discarded, or garbage, before it has its name.

    Raises:
        WeightsError: the folder exists and is not empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise WeightsError(f"{folder} exists and is not empty; choose another folder")
        self.path = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.netloader"
        remove = only_here(partial(shutil.rmtree, ignore_errors=True))
        self._remove = weakref.finalize(self, remove, self.path)

    def publish(self) -> None:
        """Have everything on the disk, and give the folder its name.

        Raises:
            OSError: the disk does not take it, or something else has got the name meanwhile.
        """
        for path in (*self.path.rglob("*"), self.path):
            _sync(path)
        self.path.rename(self.folder)
        self._remove.detach()
        _sync(self.folder.parent)

    def discard(self) -> None:
        """Remove what was written, if the folder has not got its name. Idempotent."""
        self._remove()


class NewFolder:
    """A folder that is written: files in a hidden folder next to it. `blocks`: bytes of tensors.

    `beside` are further files, by name.

    Raises:
        WeightsError: the folder exists and is not empty, or the files cannot be written.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, file_bytes: int, beside: Mapping[str, bytes]
    ) -> None:
        self._hidden = HiddenFolder(folder)
        self.blocks: dict[int, Tensor] = {}
        try:
            self._hidden.path.mkdir(parents=True)
            self._write(manifest, file_bytes)
            for name, data in beside.items():
                (self._hidden.path / name).write_bytes(data)
        except OSError as error:
            self._hidden.discard()
            raise WeightsError(f"{folder} cannot be written: {error}") from error

    def _write(self, manifest: Manifest, file_bytes: int) -> None:
        parts = list(_parts(manifest, file_bytes))
        where: dict[str, str] = {}
        for number, part in enumerate(parts, 1):
            name = f"model-{number:05}-of-{len(parts):05}.safetensors"
            name = name if len(parts) > 1 else "model.safetensors"
            where |= {manifest.tensors[index].name: name for index in part}
            self._write_file(self._hidden.path / name, manifest, part)
        if len(parts) > 1:
            index = {"metadata": {"total_size": manifest.nbytes}, "weight_map": where}
            (self._hidden.path / INDEX).write_text(json.dumps(index, indent=2))

    def _write_file(self, path: Path, manifest: Manifest, part: list[int]) -> None:
        numbers = {manifest.tensors[index].name: index for index in part}
        header, placed = write_header(manifest.tensors[index] for index in part)
        with path.open("x+b") as file:
            file.write(header)
            file.flush()
            size = len(header) + sum(one.spec.nbytes for one in placed)
            # The space is taken now: a full disk is an error here, and kills when memory is mapped.
            os.posix_fallocate(file.fileno(), 0, size)
            memory = mmap.mmap(file.fileno(), size)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        for one in placed:
            if one.spec.nbytes:
                block = whole[one.begin : one.begin + one.spec.nbytes]
                self.blocks[numbers[one.spec.name]] = block

    def publish(self) -> None:
        """Write everything to the disk, and give the folder its name: as `HiddenFolder.publish`.

        What was written to mapped memory goes to the disk with the files. `mmap.flush` would do the
        same, but holds the interpreter's lock meanwhile (CPython 3.12): seconds for a large file.
        """
        self._hidden.publish()

    def discard(self) -> None:
        """Remove the files, if the folder has not got its name. Idempotent."""
        self._hidden.discard()


def _parts(manifest: Manifest, file_bytes: int) -> Iterator[list[int]]:
    """The tensors of each file: all but those that are tied to one before them."""
    travels = {*manifest.payload}
    part: list[int] = []
    room = file_bytes
    for index, spec in enumerate(manifest.tensors):
        if spec.nbytes and index not in travels:
            continue
        if part and spec.nbytes > room:
            yield part
            part, room = [], file_bytes
        part.append(index)
        room -= spec.nbytes
    yield part


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
