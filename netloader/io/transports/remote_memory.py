"""Memory of another process of this host, read in place: process_vm_readv(2), on Linux.

The kernel allows it for processes of one user (or with CAP_SYS_PTRACE) that see each other. Under
Yama (ptrace_scope 1) the process that is read must have named the one that reads: `Tracer`.
"""

import contextlib
import ctypes
import errno
import os
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.host import boot_id
from netloader.io.memory import address_of

IOV_MAX: Final = 1024
"""Pieces per system call on either side (Linux UIO_MAXIOV)."""
PROC: Final = Path("/proc")
YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
PR_SET_PTRACER: Final = 0x59616D61
START_FIELD: Final = 22
"""The field of /proc/PID/stat that says when a process began; a pid alone may be used again."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_READ = getattr(_LIBC, "process_vm_readv", None)
if _READ is not None:
    _READ.argtypes = [ctypes.c_int, *[ctypes.c_void_p, ctypes.c_ulong] * 2, ctypes.c_ulong]
    _READ.restype = ctypes.c_ssize_t


def this_host() -> dict[str, str]:
    """What is equal for two processes that see each other; empty where that cannot be told."""
    with contextlib.suppress(OSError):
        namespace = str((PROC / "self/ns/pid").readlink())
        return {"boot_id": boot, "pid_namespace": namespace} if (boot := boot_id()) else {}
    return {}


def started(pid: int) -> str:
    """When a process began, in ticks since the host booted; empty if there is none."""
    with contextlib.suppress(OSError, IndexError):
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        return stat.rpartition(")")[2].split()[START_FIELD - 3]
    return ""


class Spans:
    """Pieces of memory of a process, addresses and lengths in turns, read from front to back."""

    def __init__(self, pieces: Sequence[int]) -> None:
        self._pieces = pieces
        self._next = 0
        self._done = 0
        """How much of the next piece was read."""

    def front(self, nbytes: int) -> "array[int]":
        """The next pieces, as many as one call may read of `nbytes` bytes."""
        found = array("Q")
        at, skip = self._next, self._done
        while nbytes and at < len(self._pieces) and len(found) < 2 * IOV_MAX:
            length = min(self._pieces[at + 1] - skip, nbytes)
            found.append(self._pieces[at] + skip)
            found.append(length)
            nbytes -= length
            at, skip = at + 2, 0
        return found

    def advance(self, nbytes: int) -> None:
        """Go on after bytes that were read."""
        self._done += nbytes
        while self._next < len(self._pieces) and self._done >= self._pieces[self._next + 1]:
            self._done -= self._pieces[self._next + 1]
            self._next += 2


def read_some(pid: int, into: Sequence[memoryview], spans: Spans) -> int:
    """Read the next bytes of another process with one call; returns how many came.

    `into` are at most IOV_MAX writable views. Fewer bytes come than they have room for where the
    call would need more pieces of the other process, or its memory ends.

    Raises:
        TransferError: none can be read: there is no such memory, or no such process any more.
        PermissionError: the kernel does not allow it.
    """
    mine = array("Q")
    for view in into:
        mine.append(address_of(view))
        mine.append(len(view))
    theirs = spans.front(sum(mine[1::2]))
    local, remote = mine.buffer_info()[0], theirs.buffer_info()[0]
    if _READ is None:
        raise PermissionError(errno.ENOSYS, "this system has no process_vm_readv")
    count: int = _READ(pid, local, len(mine) // 2, remote, len(theirs) // 2, 0)
    if count <= 0:
        code = ctypes.get_errno()
        if count < 0 and code in (errno.EPERM, errno.ENOSYS):
            raise PermissionError(code, os.strerror(code))
        why = os.strerror(code) if count < 0 else "it ends early"
        detail = f"memory of process {pid} cannot be read ({why})"
        raise TransferError(Reason.TRANSFER_FAILED, detail)
    spans.advance(count)
    return count


class Tracer:
    """The process that may read this one under Yama: one at a time. Safe to use from any thread.

    The kernel keeps one such pid for a process, and still compares users. So naming a pid permits
    nothing that another Linux without Yama would not.
    """

    def __init__(self) -> None:
        self._holder: object = None
        self._lock = threading.Lock()

    @staticmethod
    def needed() -> bool:
        """Whether a process has to be named before it may read."""
        with contextlib.suppress(OSError):
            return YAMA.read_text().strip() == "1"
        return False

    def allow(self, pid: int, holder: object) -> bool:
        """Name the process that may read; False while another holder has named one."""
        with self._lock:
            if self._holder not in (None, holder):
                return False
            named: int = _LIBC.prctl(PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)
            self._holder = holder if named == 0 else None
            return named == 0

    def end(self, holder: object) -> None:
        """Let nobody read any more, if this holder has named somebody."""
        with self._lock:
            if self._holder is holder:
                _LIBC.prctl(PR_SET_PTRACER, ctypes.c_ulong(0), 0, 0, 0)
                self._holder = None
