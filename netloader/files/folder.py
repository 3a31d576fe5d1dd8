"""The files of a folder, read into memory once, and offered from there."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Final, Self

import torch

from netloader.files.regular import read_whole
from netloader.files.rules import FilesError, Rules, spec_of
from netloader.fsm.identity import ROLE, Identity, Role
from netloader.fsm.manifest import Extent, Manifest
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.memory import HostStore
from netloader.log import Logger, emit

OVER: Final = ("tcp",)
"""The transports of files, wherever weights are: a few MB of host memory."""
SERVED_NAME: Final = "served_model_name"
"""The fact that says under which name a source answers requests."""
OTHER_RUNTIMES: Final = (
    *("onnx", "openvino", "coreml", "runs", "checkpoint-*", ".*", "__pycache__"),
)
"""Sub-folders that hold nothing for vLLM."""
MAX_FOLDERS: Final = 32
"""As many sub-folders as are looked into, in the order of their names."""
MOST_ENTRIES: Final = 10_000
"""As many entries of a folder are looked at."""


@dataclass(frozen=True)
class FolderFiles:
    """Files of a folder as they were when they were read: later changes of the disk do not matter.

    `left_out` has the names of files of a known kind that are not offered, and why.
    """

    store: HostStore
    model: str
    served_name: str
    left_out: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path, model: str, served_name: str, rules: Rules) -> Self:
        """Read what an instance needs to start, of a folder and the folders in it.

        `model` is what instances call the model whose files these are (`MODEL`), `served_name` what
        requests call it; empty where no instance answers requests.

        Links are followed inside the folder, and from a snapshot of the hub to its blobs.

        Raises:
            FilesError: there is no file to offer.
            OSError: the folder, or a file of it, cannot be read.
        """
        found = dict(_files_in(folder))
        sizes = {name: path.stat().st_size for name, path in found.items()}
        chosen, left_out = rules.chosen(sizes)
        contents = {name: read_whole(found[name], sizes[name]) for name in chosen}
        if not any(contents.values()):
            raise FilesError(f"{folder} has no files that an instance needs to start")
        return cls(store_of(contents), model, served_name, left_out)

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return self.store.manifest.nbytes

    def tell(self, logger: Logger) -> None:
        """Log that they are offered, as a person's concern where some are left out."""
        tell(self.store, self.left_out, "the model's folder", logger)

    def publish(self, options: ServerOptions) -> PublishedModel:
        """Describe them for clients, for `Server.offer`; digests are computed in the background."""
        facts = {SERVED_NAME: self.served_name} if self.served_name else {}
        identity = Identity({ROLE: Role.FILES.value, "model": self.model})
        return published(self.store, identity, replace(options, facts=facts))


def tell(store: HostStore, left_out: Mapping[str, str], of: str, logger: Logger) -> None:
    """Log that files are offered, as a person's concern where some are left out."""
    fields = {
        "netloader.files.of": of,
        "netloader.files.count": len(store.manifest.tensors),
        "netloader.files.bytes": store.manifest.nbytes,
        "netloader.files.left_out": "; ".join(f"{name} {why}" for name, why in left_out.items()),
    }
    emit(logger, "netloader.files.offered", fields, level="info" if left_out else "debug")


def published(store: HostStore, identity: Identity, options: ServerOptions) -> PublishedModel:
    """Describe files for clients, for `Server.offer`; digests are computed in the background."""
    chosen = replace(options, transports=OVER, layouts=("raw",), segment_bytes=None)
    model = publish(store, identity, chosen)
    model.seal_quietly()
    return model


def store_of(contents: Mapping[str, bytes]) -> HostStore:
    """Memory with these contents, in the order of their names."""
    names = sorted(contents)
    store = HostStore(Manifest(tuple(spec_of(name, len(contents[name])) for name in names)))
    for index, name in enumerate(names):
        if nbytes := len(contents[name]):
            place = store.place(Extent(index, 0, nbytes))
            place.copy_(torch.frombuffer(bytearray(contents[name]), dtype=torch.uint8))
    return store


def subfolders(folder: Path) -> list[Path]:
    """The sub-folders that may hold something for vLLM, the first few of them."""
    found = sorted(sub for sub in folder.iterdir() if sub.is_dir())
    return [f for f in found if not any(fnmatchcase(f.name, p) for p in OTHER_RUNTIMES)][
        :MAX_FOLDERS
    ]


def _files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """The regular files of a folder and of the folders in it, by their paths inside it."""
    root = folder.resolve(strict=True)
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")  # as huggingface_hub keeps what it downloads
    places = (root, *(sub for sub in subfolders(root) if not sub.is_symlink()))
    entries = (path for place in places for path in sorted(place.iterdir()))
    for path in islice(entries, MOST_ENTRIES):
        with suppress(OSError):  # a link to nothing
            file = path.resolve(strict=True)
            inside = any(file.is_relative_to(home) for home in homes)
            if inside and file.is_file() and not path.name.startswith("."):
                yield path.relative_to(root).as_posix(), file
