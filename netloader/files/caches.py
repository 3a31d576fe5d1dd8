"""Code that an engine compiled for its model, as files that another one finds as its own.

It is one more published model of a server, of the role `caches`. The first part of each name is a
key that both sides have for a folder. The client decides where that folder is.
"""

import mmap
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import torch

from netloader.config import Endpoint
from netloader.errors import cause
from netloader.files.fetching import receive
from netloader.files.fingerprint import check
from netloader.files.placing import place
from netloader.files.regular import read_whole
from netloader.files.rules import MIB, FilesError, Rules, spec_of
from netloader.fsm.digest_choice import STRONG
from netloader.fsm.identity import Identity, Role
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.io.options import ClientOptions
from netloader.io.store.memory import ALIGNMENT, HostStore

COMPILED: Final = Rules(None, 12, 16_384, 256 * MIB, 1024 * MIB)
"""Code for this device, with what its compiler keeps beside it."""
LEFT_OUT: Final = ("locks", "__pycache__")
"""Folders of a compiler's cache that hold nothing to use."""
UNPROVEN: Final = (
    "compiled code runs here, and nothing proves who sends it; set AUTH_TOKEN_FILE, or TLS_CERT "
    "and TLS_CA, on both sides"
)


def take_compiled(
    sources: Sequence[Endpoint],
    fingerprint: Identity,
    folders: Mapping[str, Path],
    root: Path,
    options: ClientOptions,
) -> tuple[str, ...]:
    """Receive what a source compiled, and put it where this side will look for it, below `root`.

    `folders` has, for each key that both sides have, the folder here. Keys that only the source has
    are left out.

    Returns:
        The paths below `root` of the files that were not there.

    Raises:
        FilesError: the source is not proven, was made otherwise, or offers what is not taken.
    """
    if options.token is None and options.tls is None:
        raise FilesError(UNPROVEN)
    got = receive(
        sources, Role.CACHES, replace(options, digest=STRONG), COMPILED, partial(check, fingerprint)
    )
    wanted: dict[str, bytes] = {}
    for name, content in got.contents.items():
        key, _, inside = name.partition("/")
        if inside and key in folders:
            wanted[f"{folders[key].relative_to(root).as_posix()}/{inside}"] = content
    if not wanted:
        raise FilesError("nothing that the source compiled is what this engine will look for")
    return place(wanted, root)


def compiled_in(
    folders: Mapping[str, Path], skip: Callable[[str], bool]
) -> tuple[HostStore, Mapping[str, str]]:
    """The files of compilers' caches, as they are now, and which were left out and why.

    They are copied to a file without a name beside the caches, and read from there on demand: what
    becomes of the caches later does not matter, and they take no memory that the kernel cannot have
    back. `skip` says of a folder's name that it belongs to others.

    Raises:
        FilesError: there are none.
        OSError: they cannot be copied.
    """
    found = {n: file for key, folder in folders.items() for n, file in _walk(key, folder, skip)}
    chosen, left_out = COMPILED.chosen({name: file.nbytes for name, file in found.items()})
    beside = next((folder for folder in folders.values() if folder.is_dir()), None)
    store, unread = _packed({name: found[name] for name in chosen}, beside)
    return store, {**left_out, **unread}


class _File(NamedTuple):
    """A file as it was found."""

    path: Path
    nbytes: int


def _walk(key: str, folder: Path, skip: Callable[[str], bool]) -> Iterator[tuple[str, _File]]:
    for at, below, names in os.walk(folder):
        below[:] = sorted(n for n in below if n not in LEFT_OUT and not skip(n))
        for name in sorted(names):
            path = Path(at, name)
            with suppress(FileNotFoundError):  # a compiler works in this folder, too
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    yield f"{key}/{path.relative_to(folder).as_posix()}", _File(path, found.st_size)


def _packed(files: Mapping[str, _File], beside: Path | None) -> tuple[HostStore, dict[str, str]]:
    """A store of the contents of files, in a file that has no name any more, and what is not in it.

    A file that is gone or was changed since it was found is left out.
    """
    specs: list[TensorSpec] = []
    unread: dict[str, str] = {}
    with tempfile.TemporaryFile(dir=beside) as pack:
        for name, file in sorted(files.items()):
            try:
                content = read_whole(*file)
            except OSError as error:
                unread[name] = f"cannot be read: {cause(error)}"
                continue
            specs.append(spec_of(name, len(content)))
            pack.write(content + bytes(-len(content) % ALIGNMENT))
        if not specs:
            raise FilesError("nothing was compiled that another instance could use")
        pack.flush()
        size = os.fstat(pack.fileno()).st_size
        mapped = mmap.mmap(pack.fileno(), size, access=mmap.ACCESS_COPY) if size else bytearray(1)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    return HostStore(Manifest(tuple(specs)), lambda nbytes: memory[:nbytes]), unread
