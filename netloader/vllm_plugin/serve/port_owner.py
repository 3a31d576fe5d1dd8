"""Find the process that has a port, for a log line, by /proc; never raises.

A worker whose API server was killed may live on, keep its port and serve. The next start finds the
port taken, and only the number of that process helps.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from netloader.io.clock import monotonic

PROC = Path("/proc")
SEARCH_S = 1.0
"""How long to search; a host may run tens of thousands of processes."""
LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp (include/net/tcp_states.h)."""
SHOWN_WORDS = 3
"""Words of a command line that are shown: later ones may be secrets."""
SHOWN_CHARS = 80


def holder_of(port: int) -> str:
    """The process that listens on a TCP port of this host, for people; '' when it is not seen.

    A process of another user or in another PID namespace is not seen.
    """
    try:
        return next(_holders(port), "")
    except (OSError, ValueError, IndexError):
        return ""


def _holders(port: int) -> Iterator[str]:
    links = {f"socket:[{inode}]" for inode in _listening(port)}
    until = monotonic() + SEARCH_S
    for process in PROC.iterdir() if links else ():
        if monotonic() > until:
            return
        if process.name.isdecimal() and links & set(_open_files(process)):
            yield _shown(process)


def _listening(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on a port."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]


def _open_files(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # another user's, or it has just ended
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(link)  # noqa: PTH115 - no path: socket:[inode]


def _shown(process: Path) -> str:
    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    command = " ".join(words[:SHOWN_WORDS]).strip()[:SHOWN_CHARS]
    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    orphan = ", whose parent has ended: it may be left over from an instance that was killed"
    return f"process {process.name} ({command}){orphan if parent <= 1 else ''}"
