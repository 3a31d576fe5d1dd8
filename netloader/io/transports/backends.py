"""What differs between collective libraries: one row each. All other code is shared.

A group is made of the backend's own class, never through `torch.distributed`'s functions, which
would register it with the host's world. None of the libraries may take the process down:

- HCCL's watchdog ends the process when a peer dies (torch_npu `ProcessGroupHCCL`, SIGABRT), so it
  is stopped for our groups alone. `Work.wait` does not wait, nor is `Options._timeout` a deadline:
  operations are asked whether they are complete.
- NCCL's watchdog does the same, minutes later and through the host's own groups; a group made with
  `TORCH_NCCL_BLOCKING_WAIT` has none (torch `ProcessGroupNCCL`: its constructor reads the
  environment, and there is no option). Its `Work.wait` then blocks, so complete works alone are
  waited for.
- Gloo's operations can only be waited for; they end when the pair of sockets is closed.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from netloader.io.waiting import poll

SERVER, CLIENT = 0, 1
MEMBERS = [SERVER, CLIENT]
GLOO_CONNECT_FACTOR = 5
"""Gloo waits so many times its time-out for a connection; every later wait here names its own."""
HCCL_NO_EXEC_TIMEOUT = 0
"""An operation waits on the device for as long as its group lives. With HCCL's own time-out
(HCCL_EXEC_TIMEOUT, half an hour unless the operator wants it shorter) it would *fail*, and on many
devices all streams of the process with it. The deadlines are ours."""
HCCL_WATCHDOG_STOP = 2
"""`ProcessGroupHCCL.set_watchdog_status`: 0 init, 1 run, 2 stop."""
FAILED = "an operation failed; its peer may be gone"
"""The text of a failure for which the library has none."""
_constructing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Ticket:
    """What it takes to make a group of two; `host` is an address of this side for the peer."""

    store: Store
    rank: int
    session: str
    host: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Backend:
    """One library.

    `connect` makes a group and may block until the peer does the same. `move` sends a buffer
    (uint8, 1-d, contiguous) as the server or receives it as the client, and answers a work;
    `wait(work, timeout_s, stop)` waits for that. `wake(group, rank)` makes waits fail at once, from
    any thread. `end` ends a group that has no other reference; `ended` tells whether a work
    will then touch its buffer no more, as does what `watch` answers, for all of a group.
    """

    name: str
    device: str
    in_place: bool
    """Whether it may move the engine's own memory; else staging memory only."""
    connect: Callable[[Ticket], Any]
    move: Callable[[Any, Tensor, int], Any]
    wait: Callable[[Any, float, threading.Event], None]
    wake: Callable[[Any, int], None]
    end: Callable[[Any], None]
    ended: Callable[[Any], bool]
    watch: Callable[[Any], Callable[[], bool]]
    obstacle: Callable[[], str]
    """Why it cannot be used in this process; empty if it can."""


# -- gloo ----------------------------------------------------------------------------------------


def _connect_gloo(ticket: Ticket) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # its stubs leave out what is needed to name the device
    options = gloo._Options()  # noqa: SLF001 - there is no public name
    options._timeout = timedelta(seconds=ticket.timeout_s / GLOO_CONNECT_FACTOR)  # noqa: SLF001
    options._devices = [gloo.create_device(hostname=ticket.host)]  # noqa: SLF001
    return gloo(ticket.store, ticket.rank, len(MEMBERS), options)


def _wait_gloo(work: Any, timeout_s: float, stop: threading.Event) -> None:
    del stop  # woken by _wake_gloo
    work.wait(timedelta(seconds=timeout_s))


def _wake_gloo(group: Any, rank: int) -> None:
    """Gloo has no abort; a receive that times out closes the pair, and that fails everything."""
    with contextlib.suppress(RuntimeError):
        nothing = torch.empty(1, dtype=torch.uint8)
        group.recv([nothing], 1 - rank, 1).wait(timedelta(milliseconds=1))


# -- hccl ----------------------------------------------------------------------------------------


def _connect_hccl(ticket: Ticket) -> Any:
    from torch_npu._C._distributed_c10d import ProcessGroupHCCL

    options = ProcessGroupHCCL.Options()
    options.group_name = options.group_id = ticket.session
    options.global_ranks_in_group = MEMBERS  # without: it takes itself for the host's world
    options.hccl_config = {"hccl_exec_timeout": HCCL_NO_EXEC_TIMEOUT}
    group = ProcessGroupHCCL(ticket.store, ticket.rank, len(MEMBERS), options)
    group.set_watchdog_status(HCCL_WATCHDOG_STOP)
    return group


def _move_hccl(group: Any, buffer: Tensor, rank: int) -> Any:
    """A batch of one: a plain send has a communicator of its own, which heeds no option."""
    verb = "isend" if rank == SERVER else "irecv"
    return group.batch_isend_irecv([verb], [buffer], [1 - rank])


def _watch_hccl(group: Any) -> Callable[[], bool]:
    """Whether the stream of a group has failed: it does nothing more, and its events never come."""
    here = torch.accelerator.current_stream()
    number = group._get_stream_id()  # noqa: SLF001 - there is no public name
    stream = torch.get_device_module("npu").Stream(
        stream_id=number, device_index=here.device_index, device_type=here.device_type
    )

    def failed() -> bool:
        try:
            stream.query()
        except RuntimeError:
            return True
        return False

    return failed


def _obstacle_hccl() -> str:
    if find_spec("torch_npu") is None:
        return "torch_npu is not installed"
    for name in ("RANK_TABLE_FILE", "ROOTINFO_SUBCOMM_ENABLE"):
        if os.environ.get(name, "0") not in ("", "0"):
            return f"{name} is set, and torch_npu makes every communicator of the engine's"
    return ""


# -- nccl ----------------------------------------------------------------------------------------


def _connect_nccl(ticket: Ticket) -> Any:
    nccl: Any = dist.ProcessGroupNCCL
    options = nccl.Options()
    options.group_name = ticket.session
    options.global_ranks_in_group = MEMBERS
    options.config.blocking = 0  # else nothing ends the wait for a peer that does not come
    with _environment("TORCH_NCCL_BLOCKING_WAIT", "1"):
        return nccl(ticket.store, ticket.rank, len(MEMBERS), options)


def _end_nccl(group: Any) -> None:
    group.abort()


def _obstacle_nccl() -> str:
    return "" if dist.is_nccl_available() else "this build of torch has no NCCL"


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    with _constructing:
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


# -- several -------------------------------------------------------------------------------------


def _send_or_receive(group: Any, buffer: Tensor, rank: int) -> Any:
    move = group.send if rank == SERVER else group.recv
    return move([buffer], 1 - rank, 0)


def _wait_by_asking(work: Any, timeout_s: float, stop: threading.Event) -> None:
    poll(work.is_completed, "moving a chunk", timeout_s, stop)
    if error := failure(work):
        raise RuntimeError(error)
    work.wait()  # it is complete: this has the allocator forget who used the memory


def failure(work: Any) -> str:
    """Why an operation that is complete failed; empty if it did not, or if only `wait` tells.

    torch 2.10 and 2.11 convert no `exception()` to Python, not even "none": pybind raises
    TypeError. HCCL answers `is_success` then; NCCL has none, but its `wait` raises the error.
    """
    try:
        error = work.exception()
    except TypeError:
        with contextlib.suppress(NotImplementedError):
            return "" if work.is_success() else FAILED
        return ""
    return "" if error is None else str(error) or FAILED


def _nobody_sleeps(group: Any, rank: int) -> None:
    """Do nothing: waits poll, and see that they were stopped."""


def _ends_with_its_last_reference(group: Any) -> None:
    """Do nothing: `abort_hccl_comm` would hold the interpreter lock while HCCL takes its time."""


def _never_fails(group: Any) -> Callable[[], bool]:
    del group
    return lambda: False


def _ended(work: Any) -> bool:
    try:
        return bool(work.is_completed())
    except RuntimeError:  # the device has failed, and does nothing any more
        return True


_ROWS = (
    Backend(
        name="gloo",
        device="cpu",
        in_place=True,
        connect=_connect_gloo,
        move=_send_or_receive,
        wait=_wait_gloo,
        wake=_wake_gloo,
        end=_ends_with_its_last_reference,
        ended=lambda work: True,  # noqa: ARG005 - with its pair of sockets
        watch=_never_fails,
        obstacle=lambda: "",
    ),
    Backend(
        name="hccl",
        device="npu",
        in_place=False,  # see DeviceSlot.clear
        connect=_connect_hccl,
        move=_move_hccl,
        wait=_wait_by_asking,
        wake=_nobody_sleeps,
        end=_ends_with_its_last_reference,
        ended=_ended,
        watch=_watch_hccl,
        obstacle=_obstacle_hccl,
    ),
    Backend(
        name="nccl",
        device="cuda",
        in_place=True,
        connect=_connect_nccl,
        move=_send_or_receive,
        wait=_wait_by_asking,
        wake=_nobody_sleeps,
        end=_end_nccl,
        ended=_ended,
        watch=_never_fails,
        obstacle=_obstacle_nccl,
    ),
)
BACKENDS = {backend.name: backend for backend in _ROWS}
