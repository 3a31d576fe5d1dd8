"""NCCL as far as a machine without a GPU goes: how a group is made, posted to, asked and dropped.

A SIMULATOR stands for torch's ProcessGroupNCCL, which this build of torch does not have: it has the
names and the behaviour that the transport relies on, and moves bytes of the CPU over gloo. What
only a GPU can tell is listed in docs/contribute/ascend-dev.md.
"""

import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch.distributed as dist

from netloader.fsm.reasons import Reason
from netloader.io.transports import TRANSPORTS
from netloader.io.transports.backends import BACKENDS
from netloader.io.transports.process_group import GroupTransport
from tests.unit.io.helpers import MIB, contents, module_of, random, zoo
from tests.unit.io.transports.ends import Ends, Join


class NcclWork:
    """An operation under way; asking does not wait, and waiting would block."""

    def __init__(self, work: Any) -> None:
        self._done = threading.Event()
        self._error: Exception | None = None
        threading.Thread(target=self._finish, args=(work,), daemon=True).start()

    def _finish(self, work: Any) -> None:
        try:
            work.wait(timedelta(seconds=60))
        except RuntimeError as error:
            self._error = error
        self._done.set()

    def is_completed(self) -> bool:
        return self._done.is_set()

    def exception(self) -> Exception | None:
        return self._error

    def wait(self) -> None:
        assert self._done.is_set(), "a blocking wait for something that is under way"


class NcclSimulator:
    """ProcessGroupNCCL as torch 2.13 declares it."""

    alive: ClassVar[int] = 0
    aborted: ClassVar[int] = 0
    made: ClassVar[list[dict[str, Any]]] = []

    @staticmethod
    def Options() -> SimpleNamespace:  # noqa: N802 - its name there
        return SimpleNamespace(config=SimpleNamespace(blocking=1), group_name="")

    def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
        type(self).alive += 1
        environment = os.environ.get("TORCH_NCCL_BLOCKING_WAIT")
        self.made.append({"options": options, "rank": rank, "blocking wait": environment})
        self._members = (store, rank, size)
        self._inner: Any = None

    def _communicator(self) -> Any:
        """Made with the first operation, which blocks until the peer has come as far."""
        if self._inner is not None:
            return self._inner
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timedelta(seconds=10)
        options._devices = [gloo.create_device(hostname="127.0.0.1")]
        self._inner = gloo(*self._members, options)
        return self._inner

    def __del__(self) -> None:
        type(self).alive -= 1

    def abort(self) -> None:
        type(self).aborted += 1

    def send(self, tensors: Any, peer: int, tag: int) -> NcclWork:
        return NcclWork(self._communicator().send(tensors, peer, tag))

    def recv(self, tensors: Any, peer: int, tag: int) -> NcclWork:
        return NcclWork(self._communicator().recv(tensors, peer, tag))


@pytest.fixture(autouse=True)
def nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real row of the table, on the memory of the CPU."""
    monkeypatch.setattr(dist, "ProcessGroupNCCL", NcclSimulator, raising=False)
    monkeypatch.setattr(NcclSimulator, "made", [])
    monkeypatch.setattr(NcclSimulator, "aborted", 0)
    here = replace(BACKENDS["nccl"], name="nccl on a cpu", device="cpu", obstacle=lambda: "")
    with TRANSPORTS.registered(GroupTransport(here)):
        yield


def moved(ends: Ends) -> None:
    ends.open()
    sent, received = ends.send(), ends.receive()
    assert sent.wait()
    assert received.wait()
    assert sent.failure == received.failure == []


def test_every_kind_of_tensor_arrives(join: Join) -> None:
    source, target = zoo(1), zoo(100)

    moved(join("nccl on a cpu", source, target))

    assert contents(target) == contents(source)


def test_a_group_is_made_so_that_no_watchdog_ends_the_process(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)

    moved(join("nccl on a cpu", zoo(1), zoo(2)))

    assert [made["blocking wait"] for made in NcclSimulator.made] == ["1", "1"]
    assert "TORCH_NCCL_BLOCKING_WAIT" not in os.environ


def test_an_environment_variable_of_the_operator_is_restored(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", "0")

    moved(join("nccl on a cpu", zoo(1), zoo(2)))

    assert os.environ["TORCH_NCCL_BLOCKING_WAIT"] == "0"


def test_a_group_has_the_session_in_its_name_and_can_be_left_while_it_is_made(join: Join) -> None:
    moved(join("nccl on a cpu", zoo(1), zoo(2)))

    for made in NcclSimulator.made:
        assert made["options"].group_name == "session"
        assert made["options"].global_ranks_in_group == [0, 1]
        assert made["options"].config.blocking == 0
    assert sorted(made["rank"] for made in NcclSimulator.made) == [0, 1]


def test_a_group_ends_with_its_session(join: Join) -> None:
    ends = join("nccl on a cpu", zoo(1), zoo(2))
    moved(ends)

    ends.close()

    gc.collect()
    assert NcclSimulator.alive == 0
    assert NcclSimulator.aborted == 2


def test_an_error_of_the_library_is_the_reason(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = join("nccl on a cpu", module_of(w=random(MIB)), module_of(w=random(MIB)))
    ends.open()
    monkeypatch.setattr(NcclWork, "exception", lambda self: RuntimeError("ncclRemoteError: gone"))
    ends.send()
    received = ends.receive()

    assert received.wait()
    assert received.failure[0].reason is Reason.TRANSFER_FAILED
    assert "ncclRemoteError: gone" in received.failure[0].detail
