"""Loaders of safetensors files, from a page cache that has the file (warm) or not (cold)."""

import os
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from benchmarks.page_cache import cool, warm
from benchmarks.sender import Sender, Stage
from benchmarks.target import Target
from benchmarks.workload import named

FOLDER: Final = Path(__file__).parents[2] / ".cache" / "bench-files"
Loader = Callable[[Path, Mapping[str, Tensor]], None]


class File:
    """One loader; `warm` says whether the file is read before, or put out of the page cache."""

    kind: str = "file"
    workloads: tuple[str, ...] = ("large", "small", "tiny")

    def __init__(self, what: str, package: str, load: Loader, warmth: str) -> None:
        self.name = f"{what}, {warmth}"
        if package != "safetensors":  # what they are good at are large tensors
            self.workloads = ("large", "tiny")
        self._package = package
        self._load = load
        self._ready = {"warm": warm, "cold": cool}[warmth]

    def obstacle(self) -> str:
        """Why it cannot take part, or ''."""
        found = find_spec(self._package) is not None
        return "" if found else f"the package {self._package} is not installed"

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """The returned function copies all tensors of the file into the model."""
        path = Path(sender.do(written))
        tensors = dict(named(target.model()))
        self._ready(path)
        return lambda: self._load(path, tensors)


def written(stage: Stage) -> str:
    """The file of the model, written once in a run."""
    return str(stage.once("file", lambda: _write(stage)))


def _write(stage: Stage) -> Path:
    from safetensors.torch import save_file

    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{stage.workload.name}.safetensors"
    save_file(dict(named(stage.model)), path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # the kernel drops no page that is not on the disk yet
    return path


def _safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            tensor.copy_(file.get_tensor(name))


def _runai(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(str(path))
        for name, tensor in streamer.get_tensors():
            tensors[name].copy_(tensor)


def _fastsafetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader: Any = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)
    try:
        loader.add_filenames({0: [str(path)]})
        buffers = loader.copy_files_to_device()
        try:
            for name, tensor in tensors.items():
                tensor.copy_(buffers.get_tensor(name))
        finally:
            buffers.close()
    finally:
        loader.close()


def all_files() -> Iterator[File]:
    """Every loader, warm and cold."""
    loaders: tuple[tuple[str, str, Loader], ...] = (
        ("safetensors", "safetensors", _safetensors),
        ("Run:ai streamer", "runai_model_streamer", _runai),
        ("fastsafetensors", "fastsafetensors", _fastsafetensors),
    )
    for what, package, load in loaders:
        for warmth in ("warm", "cold"):
            yield File(what, package, load, warmth)
