"""A worker of vllm-ascend in a process of its own, and the conversation with it.

What it hears first is its specification; then one command, one answer. It is the part of an engine
that loads: vllm-ascend's `NPUWorker` with its model runner, without scheduler and requests.
"""

import gc
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch_npu
from torch import nn
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins
from vllm.utils.import_utils import resolve_obj_by_qualname

from netloader.vllm_plugin.patches.worker_methods import worker_of
from tests.ascend.arithmetic import HostArithmetic
from tests.ascend.holdings import held_by
from tests.ascend.talk import converse

Spec = Mapping[str, Any]

SIGN = {"alloc": 1, "free_requested": -1}
"""What an event of torch's allocator adds to the bytes in tensors."""


class Worker:
    """One rank, loaded."""

    def __init__(self, spec: Spec) -> None:
        load_general_plugins()
        self.config = EngineArgs(**spec["engine"]).create_engine_config()
        make = resolve_obj_by_qualname(self.config.parallel_config.worker_cls)
        torch_npu.npu.set_device(spec["device"])
        self.samples = Samples(spec["device"])
        with set_current_vllm_config(self.config):
            self.inner = make(
                vllm_config=self.config,
                local_rank=spec["device"],
                rank=spec["rank"],
                distributed_init_method=spec["meeting"],
                is_driver_worker=spec["rank"] == 0,
            )
            with HostArithmetic():
                self.inner.init_device()
            with HostArithmetic(), self.samples:
                self.inner.load_model()

    @property
    def model(self) -> Any:
        """What was loaded."""
        return self.inner.model_runner.get_model()

    def held(self) -> dict[str, str]:
        """All tensors, of the draft as well if there is one."""
        found = held_by(self.model)
        drafter = getattr(self.inner.model_runner, "drafter", None)
        if isinstance(draft := getattr(drafter, "model", None), nn.Module):
            found |= {f"draft {path}": text for path, text in held_by(draft).items()}
        return found

    def offer(self) -> None:
        """Be warm: netloader serves from now on."""
        with set_current_vllm_config(self.config):
            worker_of(self.inner).warm_up.done()

    def samples_taken(self) -> list[int]:
        """MiB in tensors while the model was loaded: every change, in order."""
        return self.samples.found

    def memory(self) -> dict[str, int]:
        """MiB of the device: in tensors, kept by torch, and most at any time."""
        gc.collect()
        return memory()

    def sleep(self, level: int) -> None:
        """Let the device's memory go."""
        with HostArithmetic():
            self.inner.sleep(level)

    def wake_up(self) -> None:
        """Take it again."""
        with HostArithmetic():
            self.inner.wake_up(None)


class Samples:
    """Learns from torch's allocator how much of a device is in tensors, change by change.

    A thread that asks again and again will not do. torch_npu asks its allocator with the
    interpreter's lock held, and vllm-ascend's allocator of sleep mode waits for that lock while
    torch's is held: each thread then waits for the other.
    """

    def __init__(self, device: int) -> None:
        self.found: list[int] = []
        self._device = device
        self._before = 0

    def __enter__(self) -> None:
        self._before = torch_npu.npu.memory_allocated(self._device)
        record: Any = torch_npu.npu.memory._record_memory_history
        record("all", context=None)

    def __exit__(self, *_: object) -> None:
        events = torch_npu.npu.memory._snapshot()["device_traces"][self._device]
        torch_npu.npu.memory._record_memory_history(None)
        now = self._before
        self.found.append(now >> 20)
        for event in events:
            now += SIGN.get(event["action"], 0) * event["size"]
            if self.found[-1] != now >> 20:
                self.found.append(now >> 20)


def memory() -> dict[str, int]:
    """MiB of the device: in tensors, kept by torch's allocator, and most at any time."""
    return {
        "in_tensors": torch_npu.npu.memory_allocated() >> 20,
        "kept": torch_npu.npu.memory_reserved() >> 20,
        "most": torch_npu.npu.max_memory_allocated() >> 20,
    }


def attend(connection: Connection, spec: Spec) -> None:
    """Be a worker until the other end hangs up."""
    converse(connection, lambda: Worker(spec))
