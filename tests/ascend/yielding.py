"""A worker whose sleep-mode allocator gives every other thread a turn, whenever it is asked.

vllm-ascend's allocator takes the interpreter's lock while torch's allocator holds its own. A thread
that frees memory of the device, or asks torch_npu about it, has them the other way round: if it
comes in between, both wait for ever. Here it always comes in between.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from tests.ascend import worker

TURN_S = 0.02
"""For longer than the 5 ms after which another thread is given the interpreter's lock."""


def attend(connection: Connection, spec: Mapping[str, Any]) -> None:
    """Be such a worker until the other end hangs up."""
    allocator: Any = importlib.import_module("vllm_ascend.device_allocator.camem").CaMemAllocator
    for name in ("python_malloc_callback", "python_free_callback"):
        setattr(allocator, name, _yielding(getattr(allocator, name)))
    worker.attend(connection, spec)


def _yielding(callback: Callable[..., Any]) -> Callable[..., Any]:
    def yielding(*arguments: Any) -> Any:
        time.sleep(TURN_S)
        return callback(*arguments)

    return yielding
