"""Sources that files name, such as those that `OUTPUT_PREFIX` writes. They are read at each look.

A pattern with wildcards may match many files, of many servers. Folders that it matches are sources
themselves (see `netloader.io.own_folder`), and are left to who can serve them.
"""

import glob
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from netloader.config import Endpoint
from netloader.discovery.base import (
    MOST_CANDIDATES,
    MOST_ENTRY_BYTES,
    Candidate,
    Found,
    Key,
    is_address,
)


@dataclass(frozen=True, slots=True)
class Files:
    """Files that each hold one `IP:port`."""

    pattern: str
    """With wildcards as a shell has them."""

    @property
    def name(self) -> str:
        """The pattern."""
        return f"file:{self.pattern}"

    def find(self, key: Key, timeout_s: float) -> Found:
        """What the files say that are there now."""
        del key, timeout_s
        read = [_read(path) for path in self._matched() if not path.is_dir()]
        known = [endpoint for endpoint in read if endpoint is not None]
        candidates = tuple(Candidate(endpoint) for endpoint in dict.fromkeys(known))
        return Found(candidates, unreadable=len(read) - len(known))

    def folders(self) -> tuple[Path, ...]:
        """The folders that are there now."""
        return tuple(path for path in self._matched() if path.is_dir())

    @property
    def missing(self) -> bool:
        """Whether nothing is at the one path that the pattern is."""
        return not glob.has_magic(self.pattern) and not self._matched()

    def _matched(self) -> list[Path]:
        found = islice(glob.iglob(self.pattern), MOST_CANDIDATES)  # noqa: PTH207 - absolute
        return sorted(map(Path, found))


def _read(path: Path) -> Endpoint | None:
    try:
        if not path.is_file():  # to open a pipe would be to wait for its writer
            return None
        with path.open("rb") as file:
            text = file.read(MOST_ENTRY_BYTES).decode()
        endpoint = Endpoint.parse(text.strip())
    except (OSError, ValueError):
        return None
    return endpoint if is_address(endpoint) else None
