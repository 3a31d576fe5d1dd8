"""Sources that failed a moment ago, as all processes of one user on one host know them.

Each is an empty file in the folder of that user (see `host_notes`): its name is the endpoint, its
time of modification is the monotonic clock, which all processes of a host share, at the failure.
What cannot be read or written is left out: the order of sources is all that it changes.
"""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from netloader.config import Endpoint
from netloader.fsm.reasons import Reason
from netloader.io import host_notes
from netloader.io.clock import monotonic
from netloader.io.outcome import Attempt

AVOIDED_S: Final = 60.0
"""How long a source that failed is asked last."""
MOST: Final = 256
"""Sources that are remembered."""
KIND: Final = "failed-"
"""How the names of the files begin."""
FAILURES: Final = frozenset(
    {
        *(Reason.CONNECTION_LOST, Reason.DEADLINE_PASSED, Reason.PROTOCOL_VIOLATION),
        *(Reason.DIGEST_MISMATCH, Reason.DISAGREEMENT),
        *(Reason.TRANSFER_FAILED, Reason.TRANSFER_STALLED),
    }
)
"""How a session ends whose source is avoided; a source that lets time pass is, too."""


def heard(attempt: Attempt) -> None:
    """Remember a source that failed, and forget one that has delivered."""
    with contextlib.suppress(OSError):
        if attempt.reason in FAILURES or attempt.silent:
            _note(attempt.source)
        elif attempt.reason is Reason.VERIFIED:
            _path(attempt.source).unlink()


def failed_last(sources: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """The same sources, all of them: those that failed last, before them others of their hosts."""
    failed = frozenset(_known())
    hosts = {source.host for source in failed}
    return tuple(sorted(sources, key=lambda s: (s in failed) + (s.host in hosts)))


def _note(source: Endpoint) -> None:
    known = [*_known()]  # which makes room
    path = _path(source)
    files = [*path.parent.glob(f"{KIND}*")]
    if source not in known and len(files) >= MOST:
        return
    hidden = path.with_name(f".{KIND}{secrets.token_hex(8)}")
    hidden.touch(mode=0o600, exist_ok=False)
    os.utime(hidden, (monotonic(), monotonic()))
    hidden.rename(path)  # nobody sees it without its time


def _known() -> Iterator[Endpoint]:
    """Those that failed within AVOIDED_S; the files of others are removed."""
    now = monotonic()
    with contextlib.suppress(OSError), os.scandir(host_notes.users_folder()) as entries:
        ours = (entry for entry in entries if entry.name.startswith(KIND))
        for entry in islice(ours, MOST):
            with contextlib.suppress(OSError, ValueError):
                if 0.0 <= now - entry.stat(follow_symlinks=False).st_mtime < AVOIDED_S:
                    yield Endpoint.parse(unquote(entry.name.removeprefix(KIND)))
                else:
                    Path(entry.path).unlink()


def _path(source: Endpoint) -> Path:
    name = KIND + quote(str(source), safe=":[]")  # a scope of IPv6 may hold anything
    return host_notes.users_folder() / name
