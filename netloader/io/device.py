"""Accelerators that an engine uses too. Work of netloader does not queue behind the engine's.

Each device has one side stream in this process, for all that netloader does on it. Every thread
names its device itself: a new one is on device 0 whatever the main thread uses (CUDA and CANN keep
the current device by thread). A CPU has no streams, and nothing here changes anything for it.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from netloader.io.waiting import poll

CPU = torch.device("cpu")
OWN_THREADS = "netloader-"
"""What the names of our threads begin with. They stay on a device that they have used: torch_npu
would put a new thread back on device 0, where a context takes memory that is another rank's."""
ANSWER_S = 60.0
"""How long a device may take for what we gave it: copies of some megabytes take milliseconds."""

_side_streams: dict[torch.device, Any] = {}
_lock = threading.Lock()


def side_stream(device: torch.device) -> Any:
    """Our stream on a device: one for all, because the allocator keeps memory by stream."""
    with _lock:
        if device not in _side_streams:
            _side_streams[device] = torch.get_device_module(device).Stream(device=device)
        return _side_streams[device]


@contextlib.contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """A block in which operations of this thread on `device` go to its side stream."""
    if device == CPU:
        yield
        return
    module = torch.get_device_module(device)
    if threading.current_thread().name.startswith(OWN_THREADS):
        module.set_device(device)
    with module.device(device), module.stream(side_stream(device)):
        yield


def follow(device: torch.device) -> None:
    """Let the side stream begin after what this thread's stream was given so far."""
    if device == CPU:
        return
    module = torch.get_device_module(device)
    with module.device(device):
        side_stream(device).wait_stream(module.current_stream())


def launched(device: torch.device) -> None:
    """Wait until posted operations have reached the libraries below torch.

    torch_npu posts through a queue of its own (TASK_QUEUE_ENABLE), and an operation of a
    communicator that was destroyed meanwhile would be called with a dangling pointer.
    """
    if device != CPU:
        with contextlib.suppress(RuntimeError):  # the device has failed: nothing is launched
            side_stream(device).query()


def give_back(device: torch.device) -> None:
    """Return memory that the allocator holds for us to the device, for others to measure.

    Not while another thread allocates: torch_npu keeps the interpreter's lock while it waits for
    torch's allocator, and an allocator of sleep mode waits for that lock inside torch's. A client's
    engine waits until its transfer has ended, this included.
    """
    if device != CPU:
        with beside(device):
            torch.get_device_module(device).empty_cache()


def rooms(buffer: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Where each of some tensors (uint8, 1-d) is in a buffer that holds them back to back."""
    return buffer.split_with_sizes([len(tensor) for tensor in tensors])


class Readback:
    """Bytes of some tensors that are copied to host memory, back to back.

    Only an event tells that they have arrived. After a failure torch_npu drops work without
    an error, synchronizing a stream or device then returns at once, and pinned memory, which is
    reused, may well hold the bytes of the last time.

    Memory is kept until its copies have ended, even after an abort: torch_npu ends the
    process when pinned memory is freed that a stream was given which has failed since.
    """

    _under_way: ClassVar[list["Readback"]] = []

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Start; `tensors` are uint8 and 1-d. For the side stream, see `beside`."""
        self._device = device
        self._host = torch.empty(sum(map(len, tensors)), dtype=torch.uint8, pin_memory=True)
        self._event: Any = None
        self._keep()
        for room, tensor in zip(rooms(self._host, tensors), tensors, strict=True):
            room.copy_(tensor, non_blocking=True)
        event = torch.get_device_module(device).Event()
        event.record()
        self._event = event

    def _keep(self) -> None:
        with _lock:
            self._under_way[:] = [*(fetch for fetch in self._under_way if not fetch.over()), self]

    def over(self) -> bool:
        """Whether all copies have ended; never true after the device has failed."""
        try:
            return self._event is not None and bool(self._event.query())
        except RuntimeError:
            return False

    def wait(self, stop: threading.Event) -> Tensor:
        """Wait for the copies; returns the bytes.

        Raises:
            TransferError: it was stopped, or took too long.
        """
        poll(self._event.query, f"reading from {self._device}", ANSWER_S, stop)
        with _lock:
            self._under_way[:] = (fetch for fetch in self._under_way if fetch is not self)
        return self._host
