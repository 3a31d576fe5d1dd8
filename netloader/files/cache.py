"""Folders of received files on disk, each named by the digest of what it holds.

A folder appears complete or not at all, is never written to again, and is compared byte by byte
with what was received whenever it is there already.
"""

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from netloader.errors import cause
from netloader.files.regular import read_regular, sync_folder, write_new
from netloader.files.rules import FilesError

CACHE_VARIABLE: Final = "NETLOADER_CACHE"


def cache_root(environment: Mapping[str, str]) -> Path:
    """Where folders are kept: NETLOADER_CACHE, else `netloader` in XDG_CACHE_HOME or ~/.cache."""
    if own := environment.get(CACHE_VARIABLE):
        return Path(own).absolute() / "files"
    common = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(common).absolute() / "netloader" / "files"


def name_of(contents: Mapping[str, bytes]) -> str:
    """The name of their folder: SHA-256 over all names, each with the SHA-256 of its content."""
    whole = hashlib.sha256()
    for name in sorted(contents):
        whole.update(f"{name}\n{hashlib.sha256(contents[name]).hexdigest()}\n".encode())
    return whole.hexdigest()


def keep(contents: Mapping[str, bytes], root: Path) -> Path:
    """The folder with these contents, which is written unless it is there.

    Names are relative paths that `Rules.check` has accepted.

    Raises:
        FilesError: the folder is there with something else in it, or cannot be written.
    """
    folder = root / name_of(contents)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not folder.exists():
            _write(contents, root, folder)
        changed = next(_differences(contents, folder), None)
    except OSError as error:
        what = f"{error.filename or folder} cannot be used: {cause(error)}"
        raise FilesError(f"{what}; name another folder in {CACHE_VARIABLE}") from error
    if changed is not None:
        remedy = "remove the folder, and find out who wrote to it"
        raise FilesError(f"{folder} holds something else than was received, {changed}; {remedy}")
    return folder


def _write(contents: Mapping[str, bytes], root: Path, folder: Path) -> None:
    """Write all to a hidden folder, and give it its name if no other process did so first."""
    hidden = root / f".{folder.name}.{secrets.token_hex(4)}"
    hidden.mkdir(mode=0o700)
    try:
        for name, content in contents.items():
            path = hidden / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_new(path, content, 0o400)
        for place in (*_folders_in(hidden), hidden):
            sync_folder(place)
        try:
            hidden.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        sync_folder(root)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _folders_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_dir())


def _differences(contents: Mapping[str, bytes], folder: Path) -> Iterator[str]:
    """The files in which a folder is not what it should be."""
    there = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }
    yield from (name for name in there if name not in contents)
    for name, content in contents.items():
        if name not in there or read_regular(there[name], len(content) + 1) != content:
            yield name
