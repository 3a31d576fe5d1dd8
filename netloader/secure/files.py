"""Files that are read again when they have changed, so that secrets are replaced without a restart.

What a changed file holds is used from the next connection on. If it cannot be used, what was read
before stays in force, and the log says why, once for each change.
"""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from netloader.errors import cause
from netloader.log import emit, get_logger

T = TypeVar("T")


class WatchedFiles(Generic[T]):
    """What `read` makes of some files. Safe to use from any thread.

    A look at it costs one `stat` for each file. `read` raises OSError or ValueError with a text
    that tells no secret.

    Raises:
        OSError, ValueError: `read` cannot use the files, the first time.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._versions()
        self._value = read()

    @property
    def value(self) -> T:
        """What the files hold now, or held when they could be used last."""
        with self._lock:
            versions = self._versions()
            if versions == self._seen:
                return self._value
            self._seen = versions
            try:
                self._value = self._read()
            except (OSError, ValueError) as error:
                self._tell("netloader.secret.unreadable", cause(error))
            else:
                self._tell("netloader.secret.reloaded", "")
            return self._value

    def _versions(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_version, self._paths))

    def _tell(self, event: str, why: str) -> None:
        fields = {"netloader.files": ", ".join(map(str, self._paths))}
        more = {"netloader.detail": why} if why else {}
        emit(get_logger("secrets"), event, {**fields, **more})


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written, or another takes its name; None without a file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - follows the links by which secrets are mounted
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
