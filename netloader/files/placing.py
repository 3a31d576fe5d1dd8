"""Put files into folders that others use as well: each appears whole, and none is overwritten."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from netloader.errors import cause
from netloader.files.rules import FilesError

HIDDEN: Final = ".netloader."
"""How the folders begin in which files are written before they have their places."""
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def place(contents: Mapping[str, bytes], root: Path) -> tuple[str, ...]:
    """Put files below a folder, in the order of their names; those that are there stay as they are.

    Names are relative paths that `Rules.check` has accepted. All are written to a hidden folder
    first, so a process that is killed leaves no file half. What one left in the hidden folder is
    removed by the next. No link below `root` is followed.

    Returns:
        The names of the files that were not there before.

    Raises:
        FilesError: a folder below `root` is a link or no folder, or cannot be written. Nothing was
            put there then, unless the disk failed in between.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = root.resolve(strict=True)
        for folder in {PurePosixPath(name).parent for name in contents}:
            _check(home, folder)
        with _hidden(home) as hidden:
            for number, name in enumerate(contents):
                _write(hidden / str(number), contents[name])
            numbers = {name: str(number) for number, name in enumerate(contents)}
            return tuple(n for n in sorted(contents) if _put(hidden / numbers[n], home, n))
    except OSError as error:
        raise FilesError(f"{error.filename or root} cannot be used: {cause(error)}") from error


def _check(home: Path, folder: PurePosixPath) -> None:
    """Refuse a folder that leads elsewhere; one that is missing is fine."""
    for part in (*reversed(folder.parents), folder):
        at = home / part
        if at.is_symlink() or (at.exists() and not at.is_dir()):
            raise FilesError(f"{at} is no folder of its own; remove it, or leave CACHES out")


@contextmanager
def _hidden(home: Path) -> Iterator[Path]:
    """A folder for this process, which is gone afterwards; a lock says that it is in use."""
    hidden = home / f"{HIDDEN}{secrets.token_hex(8)}"
    with _locked(home):  # else another process could sweep it away before it has its lock
        _sweep(home)
        hidden.mkdir(mode=0o700)
        handle = os.open(hidden, FOLDER)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only one inside the block, as long as the others use it, too."""
    handle = os.open(folder, FOLDER)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(home: Path) -> None:
    """Remove what processes left that were killed."""
    for left in home.glob(f"{HIDDEN}*"):
        with suppress(OSError):
            handle = os.open(left, FOLDER)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _put(written: Path, home: Path, name: str) -> bool:
    """Give a file its name; False where there is one of this name already."""
    *folders, last = PurePosixPath(name).parts
    at = os.open(home, FOLDER)
    try:
        for part in folders:
            with suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=at)
            below = os.open(part, FOLDER, dir_fd=at)
            os.close(at)
            at = below
        try:
            os.link(written, last, dst_dir_fd=at, follow_symlinks=False)
        except FileExistsError:
            return False
        return True
    finally:
        os.close(at)
