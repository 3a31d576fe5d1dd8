"""What a process holds that a transport could leave behind: threads, descriptors, mappings."""

import threading
from collections import Counter
from pathlib import Path

from netloader.testing.conformance.calls import Observed, eventually

SHARED = ("/dev/shm/", "/memfd:", "/SYSV")  # noqa: S108 - names to look for, not files to make
SHARED_FILES = Path("/dev/shm")  # noqa: S108 - as above
LEFT_S = 5.0
"""How long something may outlive the end: libraries have threads of their own."""


def holdings() -> Counter[str]:
    """How many of what this process holds, by kind and name (Linux)."""
    found = Counter(f"thread {thread.name}" for thread in threading.enumerate())
    found["native threads"] = len([*Path("/proc/self/task").iterdir()])
    for link in Path("/proc/self/fd").iterdir():
        try:
            name = str(link.readlink())
        except OSError:  # the descriptor of the listing itself
            continue
        found["descriptor of a " + (name.partition(":[")[0] if ":[" in name else name)] += 1
    with Path("/proc/self/maps").open(errors="replace") as lines:
        for line in lines:
            name = line.split(maxsplit=5)[-1].strip()
            if name.startswith(SHARED):
                found[f"mapping of {name}"] += 1
    return found


def shared_files() -> frozenset[str]:
    """The names of all shared memory of this host."""
    try:
        return frozenset(path.name for path in SHARED_FILES.iterdir())
    except OSError:
        return frozenset()


def check_nothing_more(before: Counter[str], files: frozenset[str]) -> None:
    """See that this process holds no more than before, soon.

    Raises:
        Observed: it does; says what.
    """
    if eventually(lambda: not holdings() - before, LEFT_S):
        left: list[str] = []
    else:
        left = [f"{count} more: {name}" for name, count in (holdings() - before).items()]
    new = shared_files() - files
    left += [f"shared memory {name}" for name in sorted(new) if not _used_elsewhere(name)]
    if left:
        raise Observed("left behind: " + "; ".join(left))


def _used_elsewhere(name: str) -> bool:
    """Whether another process has a file of shared memory open: then it may be that one's."""
    path = str(SHARED_FILES / name)
    if not Path(path).exists():
        return True
    own = Path("/proc/self").resolve()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process != own and path in (process / "maps").read_text(errors="replace"):
                return True
        except OSError:  # it is gone, or another user's
            continue
    return False
