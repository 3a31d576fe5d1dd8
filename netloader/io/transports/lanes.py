"""Data connections of one session. Every wait for one has a deadline."""

import contextlib
import errno
import ipaddress
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from functools import partial

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.forks import INHERITANCE
from netloader.secure.sockets import SecureSocket


def lane_error(error: OSError, how: str) -> TransferError:
    """What became of a data connection, with the name of the error: EMFILE for instance."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return TransferError(Reason.TRANSFER_FAILED, f"the data connection {how} ({name})")


class Lanes:
    """The lanes of one session by number: attached by one thread, taken by another."""

    def __init__(self) -> None:
        self._lanes: dict[int, socket.socket] = {}
        self._closed = False
        self._taken = False
        self._change = threading.Condition()
        self.interrupted = False

    def attach(self, index: int, lane: socket.socket) -> None:
        """Add a lane; a second one of the same number, or one too late, is closed."""
        with self._change:
            if self._closed or index in self._lanes:
                INHERITANCE.close(lane)
                return
            self._lanes[index] = lane
            self._change.notify_all()

    def take(self, count: int, timeout_s: float) -> list[socket.socket]:
        """Lanes 0 to count-1.

        Raises:
            TransferError: they were not all there after `timeout_s` seconds, or were aborted.
        """

        def here() -> bool:
            return self._closed or all(i in self._lanes for i in range(count))

        with self._change:
            if not self._change.wait_for(here, timeout_s):
                raise TransferError(Reason.TRANSFER_STALLED, f"fewer than {count} data lanes came")
            if self._closed:
                raise TransferError(Reason.TRANSFER_FAILED, "aborted")
            self._taken = True
            return [self._lanes[i] for i in range(count)]

    def work(self, count: int, timeout_s: float, job: Callable[[int, socket.socket], int]) -> int:
        """Take lanes and run `job(k, lane)` on each side by side; returns the sum of the answers.

        The lanes stay open for another call, until `close` or `abort`. They do so after a failure
        too, so that the session learns the cause here before it receives the peer's complaint.

        Raises:
            TransferError: as `take`, or what the first job to fail raised; the rest are stopped.
        """
        try:
            lanes = self.take(count, timeout_s)
            jobs = [partial(job, k, lane) for k, lane in enumerate(lanes)]
            return side_by_side(jobs, self._interrupt)
        finally:
            self.release()

    def release(self) -> None:
        """Note that no thread uses the lanes any more; they stay open until `abort`."""
        with self._change:
            self._taken = False
            if self._closed:
                self._close_all()

    def _interrupt(self) -> None:
        """Stop the other lanes: they look at `interrupted`, and blocked receives return."""
        self.interrupted = True
        with self._change:
            for lane in self._lanes.values():
                with contextlib.suppress(OSError):
                    lane.shutdown(socket.SHUT_RD)

    def abort(self) -> None:
        """Wake every thread that waits on a lane. Lanes that were taken are not closed here."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            for lane in self._lanes.values():
                with contextlib.suppress(OSError):
                    lane.shutdown(socket.SHUT_RDWR)
            if not self._taken:
                self._close_all()

    def close(self) -> None:
        """Close every lane. Called by the thread that took them, when no thread uses one."""
        with self._change:
            self._closed = True
            self._close_all()

    def _close_all(self) -> None:
        for lane in self._lanes.values():
            INHERITANCE.close(lane)
        self._lanes.clear()


def set_stall(lane: socket.socket, stall_s: float) -> None:
    """Blocking calls that give up after `stall_s` seconds, enforced by the kernel.

    A Python time-out would make the socket non-blocking and every call short; SO_RCVTIMEO and
    SO_SNDTIMEO (socket(7)) keep calls large, so the interpreter lock is hardly ever held.
    """
    if isinstance(lane, SecureSocket):  # it waits outside of the system call
        lane.settimeout(stall_s)
        return
    lane.settimeout(None)
    seconds = int(stall_s)
    interval = struct.pack("ll", seconds, int((stall_s - seconds) * 1_000_000))
    lane.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    lane.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


def send_at_once(lane: socket.socket) -> None:
    """Have single bytes and small messages sent without delay, on a lane that carries such.

    Otherwise the kernel keeps the second one back until the first is acknowledged (RFC 896), and
    the peer acknowledges after 40 ms if it has nothing to say (RFC 1122, 4.2.3.2).
    """
    if lane.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # slower, and no less right
            lane.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def suit_own_host(lane: socket.socket) -> None:
    """On a connection to this host, use a congestion control that does not measure the path.

    BBR paces by what it measures, and between two processes that share cores it measures how they
    are scheduled: 4.1 GiB/s on two cores, 5.2 with "reno", which every process may choose (tcp(7)).
    To other hosts the operator's choice stays. Best effort: a connection works with either.
    """
    if lane.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):
        near, far = lane.getsockname()[0], lane.getpeername()[0]
        if near == far or ipaddress.ip_address(far).is_loopback:
            lane.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def is_stall(lane: socket.socket, waited_s: float) -> bool:
    """Whether a call that moved less than all has used up its time: the kernel counts in ticks.

    Otherwise a signal cut it short (socket(7), signal(7)), as a debugger or a freezer sends them.
    """
    size = struct.calcsize("ll")
    told = lane.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, size)
    seconds, microseconds = struct.unpack("ll", told)
    limit_s: float = seconds + microseconds / 1_000_000
    return 0 < 0.9 * limit_s <= waited_s


def side_by_side(jobs: Sequence[Callable[[], int]], abort: Callable[[], None]) -> int:
    """Run each job on a thread and add up the results; the first failure aborts the rest."""
    results: list[int] = []
    failures: list[Exception] = []

    def run(job: Callable[[], int]) -> None:
        try:
            results.append(job())
        except Exception as error:  # noqa: BLE001 - carried over to the caller's thread
            failures.append(error)
            abort()

    threads: list[threading.Thread] = []
    try:
        for i, job in enumerate(jobs[1:], 1):
            name = f"netloader-lane-{i}"
            thread = threading.Thread(target=run, args=(job,), name=name, daemon=True)
            thread.start()
            threads.append(thread)
        run(jobs[0])
    except RuntimeError as error:  # the process may have no more threads
        detail = f"a thread for a data connection cannot be started ({error}); raise pids.max"
        failures.insert(0, TransferError(Reason.TRANSFER_FAILED, detail))
        abort()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(results)
