"""Looking into the simulated runtime from tests. Behind the back of torch_npu, which would
wait for a stream where a test wants to see that nothing has happened yet."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from tests.npu.simulator import torch_npu

PATIENCE: Final = 60.0
POISON: Final = 0xA5

PARAMETER_REFUSED: Final = 107000
NO_DEVICE_IN_THREAD: Final = 107002
OUT_OF_MEMORY: Final = 207001
COPY_FAILED: Final = 507013
NOT_FINISHED_IN_TIME: Final = 507046
WAITED_TOO_LONG: Final = 507048

npu: Any = torch_npu.npu
runtime = ctypes.CDLL("libascendcl.so")

_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def handle(stream: Any) -> ctypes.c_void_p:
    """What the runtime knows a stream as."""
    return ctypes.c_void_p(stream.npu_stream)


def reads(tensor: torch.Tensor, byte: int) -> bool:
    """Say whether every byte in "device memory" is this one, without waiting for any stream."""
    there = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    return there == bytes([byte]) * tensor.nbytes


@contextmanager
def hold(stream: Any) -> Iterator[None]:
    """Keep a stream busy until the block ends."""
    release = threading.Event()

    def wait(_: int) -> None:
        release.wait(PATIENCE)

    function = _HostFunction(wait)
    assert runtime.aclrtLaunchHostFunc(handle(stream), function, None) == 0
    try:
        yield
    finally:
        release.set()
        runtime.aclrtSynchronizeStreamWithTimeout(handle(stream), int(PATIENCE * 1000))


@cache
def _threes() -> torch.Tensor:
    """Pinned memory that is never freed: torch_npu would record an event on every stream that
    used it, which a failed one refuses, and would end the process."""
    return torch.full((64,), 3, dtype=torch.uint8).pin_memory()


def copy_on(stream: Any) -> torch.Tensor:
    """Send 64 bytes of 3 to the device, later, on a stream."""
    source = _threes()
    target = torch.empty(64, dtype=torch.uint8, device=stream.device)
    with npu.stream(stream):
        return target.copy_(source, non_blocking=True)


@dataclass(frozen=True)
class Ran:
    """How a program of its own ended."""

    code: int
    said: list[str]
    errors: str
    trace: list[str]


def run(program: str, **knobs: str) -> Ran:
    """Run a program on the simulator in a process of its own."""
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace")
        done = subprocess.run(
            [sys.executable, "-c", cleandoc(program)],
            env={
                **os.environ,
                "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
                "PYTHONFAULTHANDLER": "1",  # where it was, if it dies
                "PYTHONUNBUFFERED": "1",
                "SIM_CANN_TRACE": str(trace),
                **knobs,
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE * 4,
            check=False,
        )
        lines = trace.read_text().splitlines() if trace.exists() else []
        return Ran(done.returncode, done.stdout.splitlines(), done.stderr, lines)
