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
from netloader.files.regular import sync_folder, write_new
from netloader.files.rules import FilesError

HIDDEN: Final = ".netloader."
"""How the folders begin in which files are written before they have their places."""
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
ATTEMPTS: Final = 16
"""To make a hidden folder before another process removes it."""


def place(contents: Mapping[str, bytes], root: Path) -> tuple[str, ...]:
    """Put files below a folder, in the order of their names; those that are there stay as they are.

    Names are relative paths that `Rules.check` has accepted. All are written to a hidden folder
    first, and are on the disk before they have their names: neither a process that is killed nor a
    power loss leaves a file half. What one left in the hidden folder is removed by the next. No
    link below `root` is followed, and no other process is waited for.

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
                write_new(hidden / str(number), contents[name], 0o600)
            numbers = {name: str(number) for number, name in enumerate(contents)}
            placed = tuple(n for n in sorted(contents) if _put(hidden / numbers[n], home, n))
        for folder in {parent for name in placed for parent in PurePosixPath(name).parents}:
            sync_folder(home / folder)
    except OSError as error:
        raise FilesError(f"{error.filename or root} cannot be used: {cause(error)}") from error
    return placed


def _check(home: Path, folder: PurePosixPath) -> None:
    """Refuse a folder that leads elsewhere; one that is missing is fine."""
    for part in (*reversed(folder.parents), folder):
        at = home / part
        if at.is_symlink() or (at.exists() and not at.is_dir()):
            raise FilesError(f"{at} is no folder of its own; remove it, or leave CACHES out")


@contextmanager
def _hidden(home: Path) -> Iterator[Path]:
    """A folder for this process, which is gone afterwards; a lock says that it is in use."""
    _sweep(home)
    hidden, handle = _made(home)
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(handle)


def _made(home: Path) -> tuple[Path, int]:
    """A new folder, with the descriptor that has its lock.

    Until it is locked, another process may take it for left over and remove it; then the next is
    made.
    """
    for _ in range(ATTEMPTS):
        hidden = home / f"{HIDDEN}{secrets.token_hex(8)}"
        hidden.mkdir(mode=0o700)
        try:
            return hidden, _locked(hidden)
        except (FileNotFoundError, BlockingIOError):
            continue
        except OSError:  # locks are not supported here
            hidden.rmdir()
            raise
    raise FilesError(f"{home} cannot be used: other processes remove each new folder in it")


def _locked(folder: Path) -> int:
    """Lock a folder without waiting; a descriptor, which has the lock until it is closed.

    Raises:
        BlockingIOError: another process has the lock.
        FileNotFoundError: the folder was removed before it was locked.
        OSError: it cannot be locked.
    """
    handle = os.open(folder, FOLDER)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.lstat()
    except OSError:
        os.close(handle)
        raise
    return handle


def _sweep(home: Path) -> None:
    """Remove what processes left that were killed."""
    for left in home.glob(f"{HIDDEN}*"):
        with suppress(OSError):
            handle = _locked(left)
            try:
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)


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
