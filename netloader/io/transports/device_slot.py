"""The slot of a device: one communicator at a time. A device that has failed gives it to none.

A communicator costs device memory by itself (HCCL: twice HCCL_BUFFSIZE, 200 MB unless set; CANN
environment variable reference), so sessions that want the same device take turns: a server
refuses the second one as busy. The staging memory stays here between transfers, because memory
that a failed operation was given must not go back to an allocator that the engine uses as well.
"""

import secrets
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from netloader.fsm.reasons import Reason
from netloader.io.chunks import CHUNK_BYTES
from netloader.io.device import CPU, Readback, beside, give_back
from netloader.io.failure import TransferError
from netloader.io.transports.base import BusyError
from netloader.io.waiting import poll

IN_FLIGHT = 4
"""Chunks under way at once: the next are on the wire while one is verified. With CHUNK_BYTES they
bound the staging memory to 64 MiB."""
MAX_STUCK = 3
"""Groups whose last operation did not end with them, before no other is begun. One that is still in
the making, for a peer that left, counts for all of them: HCCL allows no two at once (CANN API
reference, HcclCommInitRootInfoConfig)."""


class DeviceSlot:
    """Which session may have a group on a device; on a CPU, each session has a slot of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stuck: list[tuple[int, Callable[[], bool]]] = []
        self._owner: object = None
        self._suspect = False
        self._tainted = False
        self._staging: Tensor | None = None
        self._lost: list[Tensor] = []
        self._lock = threading.Lock()

    def claim(self, owner: object) -> None:
        """Take the slot.

        Raises:
            BusyError: another session has it, or the library is still busy with peers that left.
            TransferError: the device does not work.
        """
        with self._lock:
            if self._owner is not None:
                raise BusyError(f"another transfer has the communicator of {self.device}")
            if self._jammed():
                raise BusyError(f"communicators of {self.device} still wait for peers that left")
            self._owner = owner
            suspect = self._suspect
        if suspect:
            self._examine(owner)

    def _jammed(self) -> bool:
        if self._stuck:
            with beside(self.device):
                self._stuck = [(count, over) for count, over in self._stuck if not over()]
        return sum(count for count, _ in self._stuck) >= MAX_STUCK

    def _examine(self, owner: object) -> None:
        if not _works(self.device):
            self.leave(owner)
            detail = f"{self.device} failed, and drops work since; restart this process"
            raise TransferError(Reason.TRANSFER_FAILED, detail)
        with self._lock:
            self._suspect = False

    def wait_for(self, owner: object, timeout_s: float, stop: threading.Event) -> None:
        """Take the slot when it is free.

        Raises:
            BusyError: another transfer had it for too long; try again later.
            TransferError: it was stopped, the library is busy for longer than a session
                should wait, or the device does not work.
        """
        obstacle: list[str] = []

        def claimed() -> bool:
            try:
                self.claim(owner)
            except BusyError as busy:
                obstacle[:] = [busy.detail]
                return False
            return True

        try:
            poll(claimed, f"waiting for {self.device}", timeout_s, stop)
        except TransferError as error:
            if error.reason is not Reason.TRANSFER_STALLED:
                raise
            with self._lock:
                jammed = self._jammed()
            if jammed:
                raise TransferError(error.reason, obstacle[0]) from error
            raise BusyError(f"{obstacle[0]}; waited {timeout_s:g} s") from error
        if stop.is_set():  # perhaps set before the slot was taken, which would then stay taken
            self.leave(owner)
            raise TransferError(Reason.TRANSFER_FAILED, "aborted")

    def leave(self, owner: object) -> None:
        """Give the slot back, if `owner` has it."""
        with self._lock:
            if self._owner is owner:
                self._owner = None

    def strand(self, count: int, over: Callable[[], bool]) -> None:
        """Note what the library still does for a peer that left, until it is `over`.

        It counts for `count` groups; `over` is asked on any thread that is `beside` the device.
        """
        with self._lock:
            self._stuck.append((count, over))

    def suspect(self) -> None:
        """A transfer failed: look at the device before it is used again."""
        with self._lock:
            self._suspect = self._tainted = True

    def staging(self) -> Tensor:
        """Staging memory for packed chunks, IN_FLIGHT rows; for the owner of the slot."""
        if self._staging is None:
            shape = (IN_FLIGHT, CHUNK_BYTES)
            self._staging = torch.empty(shape, dtype=torch.uint8, device=self.device)
        return self._staging

    def abandon(self) -> None:
        """Use this staging memory no more: an operation may still write into it."""
        if self._staging is not None:
            self._lost.append(self._staging)
        self._staging = None

    def clear(self) -> None:
        """Give the staging memory back to the device, and what the allocator has to spare.

        Memory that a failed operation was given is never given back: torch_npu's allocator would
        record an event on the stream that failed, and end the process when that is refused.
        """
        if not self._tainted:
            self._staging = None
            give_back(self.device)


class DeviceSlots:
    """The slots of all devices for one transport. Safe to use from any thread."""

    def __init__(self) -> None:
        self._slots: dict[torch.device, DeviceSlot] = {}
        self._lock = threading.Lock()

    def of(self, device: torch.device) -> DeviceSlot:
        """The one slot of an accelerator; on a CPU, a new one for each call."""
        if device == CPU:
            return DeviceSlot(device)
        with self._lock:
            return self._slots.setdefault(device, DeviceSlot(device))


def _works(device: torch.device) -> bool:
    """Whether bytes that are sent to a device come back."""
    sent = torch.frombuffer(bytearray(secrets.token_bytes(64)), dtype=torch.uint8)
    try:
        with beside(device):
            back = Readback([sent.to(device)], device).wait(threading.Event())
        return torch.equal(back, sent)
    except (RuntimeError, TransferError):  # torch's error for every failure of a device
        return False
