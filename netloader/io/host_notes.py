"""What the processes of one user on one host tell each other, by files in a folder of that user.

A note has a writer, who keeps a lock on it (flock). The kernel frees the lock when the process
ends, however it ends, so a note without a lock says nothing, and whoever finds it removes it.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import tempfile
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Final

from netloader.io.forks import INHERITANCE

MOST_NOTES: Final = 256
"""Of one kind that are read."""
MOST_NOTE_BYTES: Final = 1 << 16


def users_folder() -> Path:
    """The folder of this user; made where it is missing.

    Raises:
        OSError: it cannot be made, or it is not this user's alone.
    """
    folder = Path(tempfile.gettempdir()) / f"netloader-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    ours = about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077
    if not (stat.S_ISDIR(about.st_mode) and ours):
        raise PermissionError(f"{folder} is no folder that this user alone can enter")
    return folder


class HostNotes:
    """The notes of one kind: one that is written here, and those of others. Not thread-safe.

    `kind` begins the names of their files.

    Raises:
        OSError: there is no folder for them.
    """

    def __init__(self, kind: str) -> None:
        self._folder = users_folder()
        self._kind = kind
        self._own: tuple[Path, FileIO] | None = None

    def put(self, data: bytes) -> None:
        """Write the note, in place of the one before.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        name = f"{self._kind}{secrets.token_hex(8)}"  # never the name of a note that was removed
        hidden, path = self._folder / f".{name}", self._folder / name
        with INHERITANCE.atomic():
            file = INHERITANCE.note(FileIO(hidden, "x"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(data)
            hidden.rename(path)  # others see it from now on, and it is locked
        except OSError:
            INHERITANCE.close(file)
            hidden.unlink(missing_ok=True)
            raise
        self.take_back()
        self._own = path, file

    def take_back(self) -> None:
        """Remove the note."""
        if self._own is not None:
            path, file = self._own
            self._own = None
            with contextlib.suppress(OSError):
                path.unlink()
            INHERITANCE.close(file)

    def others(self) -> tuple[bytes, ...]:
        """The notes of writers that live, without the one that is written here."""
        own = self._own[0].name if self._own else ""
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            names = (e.name for e in entries if e.name.startswith(self._kind) and e.name != own)
            read = [_read(self._folder / name) for name in islice(names, MOST_NOTES)]
            return tuple(data for data in read if data is not None)
        return ()


def _read(path: Path) -> bytes | None:
    """A note; None without a living writer, in which case it is removed."""
    try:
        with INHERITANCE.atomic():
            file = INHERITANCE.note(FileIO(path, opener=_opened))
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # its writer has the lock
        return file.read(MOST_NOTE_BYTES)
    except OSError:
        return None
    else:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    finally:
        INHERITANCE.close(file)


def _opened(path: str, flags: int) -> int:
    """Open what may be a pipe or a link, without waiting and without following."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
