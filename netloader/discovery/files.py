"""Sources that files name, such as those that `OUTPUT_PREFIX` writes. They are read at each look.

A pattern with wildcards may match many files, of many servers.
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
        paths = sorted(islice(glob.iglob(self.pattern), MOST_CANDIDATES))  # noqa: PTH207 - absolute
        read = [_read(Path(path)) for path in paths]
        known = [endpoint for endpoint in read if endpoint is not None]
        candidates = tuple(Candidate(endpoint) for endpoint in dict.fromkeys(known))
        return Found(candidates, unreadable=len(read) - len(known))


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
