"""Which files travel, decided by names and sizes alone, before a byte is received.

A server offers nothing that these rules refuse, and a client takes nothing that they refuse,
whatever a server offers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from netloader.config import shown
from netloader.errors import NetloaderError
from netloader.fsm.manifest import Manifest, TensorSpec

MIB: Final = 1 << 20
PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]{0,127}")
"""One part of a path. ASCII alone: names that look the same are the same, on every file system."""
MOST_PARTS: Final = 4
OF_A_VERSION: Final = re.compile(r".+\.model\.v\d{1,3}")
"""How the names of some tokenizers end: `tokenizer.model.v3`."""
CODE: Final = ".py"
DATA_SUFFIXES: Final = frozenset(
    (".bpe", ".jinja", ".json", ".model", ".tiktoken", ".txt", ".vocab")
)
NOT_TO_START: Final = (
    *("*.index.json", "adapter_config.json", "netloader.json", "netloader-map.json"),
    *("trainer_state.json", "*_results.json"),
)
"""Files that belong to weights, adapters or training: an instance starts without them. An index
names files on the disk of whoever reads it, so nobody takes one from a source."""


class FilesError(NetloaderError):
    """Files of a model's folder cannot be had, or are not taken. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may travel. Sizes are in bytes."""

    suffixes: frozenset[str] | None = DATA_SUFFIXES
    """How names end; None: as they like, for what only its writer reads."""
    most_parts: int = MOST_PARTS
    """Of a path."""
    most_files: int = 512
    most_file_bytes: int = 128 * MIB
    most_bytes: int = 512 * MIB

    def check(self, manifest: Manifest) -> None:
        """Refuse what a source offers, unless every file of it may be taken.

        Raises:
            FilesError: the first that may not, and why.
        """
        specs = manifest.tensors
        if not manifest.nbytes:
            raise FilesError("the source offers no files, or empty ones only")
        if len(specs) > self.most_files:
            raise FilesError(f"the source offers {len(specs)} files; {self._room}")
        for spec in specs:
            flaw = self.flaw(spec.name, spec.nbytes)
            if not flaw and spec != spec_of(spec.name, spec.nbytes):
                flaw = "is not described as plain bytes; update netloader on both sides"
            if flaw:
                raise FilesError(f"the file {shown(spec.name)} of the source {flaw}")
        if clash := clash_in(spec.name for spec in specs):
            raise FilesError(f"the source offers {clash}")
        if (total := sum(spec.nbytes for spec in specs)) > self.most_bytes:
            raise FilesError(f"the source offers {total} bytes of files; {self._room}")
        if manifest.values:
            raise FilesError("the source offers more than files; update netloader on both sides")

    @property
    def _room(self) -> str:
        return f"at most {self.most_files} with {self.most_bytes} bytes in all are taken"

    def flaw(self, name: str, nbytes: int) -> str:
        """Why a file is not taken, as the end of a sentence about it; empty if it is."""
        parts = name.split("/")
        if not all(map(PART.fullmatch, parts)) or len(parts) > self.most_parts:
            return (
                "has no path that is taken: give it at most "
                f"{self.most_parts} parts of letters, digits and . _ + @ = - that begin with no dot"
            )
        if not self._known(parts[-1]):
            if parts[-1].endswith(CODE):
                return "is code; give --trust if its source may run code here"
            kinds = " ".join(sorted(self.suffixes or ()))
            return f"is of no kind that is taken: {kinds}, but no index and no adapter"
        if not 0 <= nbytes <= self.most_file_bytes:
            return f"has {nbytes} bytes; at most {self.most_file_bytes} are taken"
        return ""

    def _known(self, last: str) -> bool:
        if self.suffixes is None:
            return True
        if any(fnmatchcase(last, pattern) for pattern in NOT_TO_START):
            return False
        return PurePosixPath(last).suffix in self.suffixes or bool(OF_A_VERSION.fullmatch(last))

    def chosen(self, found: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, str]]:
        """The files to offer of those that a folder has, and why others of their kinds are not.

        `found` has the size of each; paths are relative to the folder.
        """
        chosen: dict[str, int] = {}
        left_out: dict[str, str] = {}
        for name in sorted(found):
            last = name.rpartition("/")[2]
            if not self._known(last):
                continue
            nbytes = found[name]
            flaw = self.flaw(name, nbytes) or clash_in((*chosen, name))
            if not flaw and (
                len(chosen) == self.most_files or sum(chosen.values()) + nbytes > self.most_bytes
            ):
                flaw = f"does not fit: {self._room}"
            if flaw:
                left_out[name] = flaw
            else:
                chosen[name] = nbytes
        return tuple(chosen), left_out


DATA: Final = Rules()
"""Files that nothing runs."""
WITH_CODE: Final = Rules(DATA_SUFFIXES | {CODE})
"""Code of the model too, for engines that run it (`--trust-remote-code`)."""


def spec_of(name: str, nbytes: int) -> TensorSpec:
    """How a file is described in a manifest."""
    return TensorSpec(name, "uint8", (nbytes,), (1,), nbytes)


def clash_in(names: Iterable[str]) -> str:
    """Two names that some file system takes for one, or as file and folder; empty without."""
    seen: dict[str, str] = {}
    for name in names:
        if other := seen.get(name.lower()):
            return f"{shown(other)} and {shown(name)}, which are one file on some file systems"
        seen[name.lower()] = name
    for name in seen.values():
        for parent in PurePosixPath(name.lower()).parents:
            if other := seen.get(str(parent)):
                return f"{shown(name)} and {shown(other)}, which cannot be a file and a folder"
    return ""
