"""One copy by one thread: what memory itself gives, within a process and from another one."""

import array
import ctypes
import os
from collections.abc import Callable
from typing import Final

import torch

from benchmarks.sender import Sender, Stage
from benchmarks.target import Target
from benchmarks.workload import MIB, tensors_of, views_of

LIBC: Final = ctypes.CDLL(None, use_errno=True)
PR_SET_PTRACER: Final = 0x59616D61
MOST_VECTORS: Final = 1024
STEP: Final = MIB


class Memcpy:
    """`memcpy` from memory of the same process that holds the same tensors."""

    name: str = "memcpy"
    kind: str = "memory"
    workloads: tuple[str, ...] = ("large", "small", "tiny")

    def obstacle(self) -> str:
        """It takes part everywhere."""
        return ""

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """The returned function copies one piece of memory, a MiB a call."""
        first = sender.do(whole_sample)
        source = torch.zeros(target.workload.nbytes, dtype=torch.uint8)
        source[: len(first)] = torch.frombuffer(bytearray(first), dtype=torch.uint8)
        block = target.block()

        def copy() -> None:
            here, there = block.data_ptr(), source.data_ptr()
            for start in range(0, block.numel(), STEP):
                count = min(STEP, block.numel() - start)
                ctypes.memmove(here + start, there + start, count)

        return copy


class ReadFromProcess:
    """`process_vm_readv` from the memory of the sending process, into the tensors of a model."""

    name: str = "process_vm_readv"
    kind: str = "same host"
    workloads: tuple[str, ...] = ("large", "small", "tiny")

    def obstacle(self) -> str:
        """Why it cannot take part, or ''."""
        return "" if hasattr(LIBC, "process_vm_readv") else "the C library has no such call"

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """The returned function reads a MiB a call, or 1,024 small tensors."""
        pid, theirs = sender.do(addresses, os.getpid())
        model = target.model()
        ours = [(t.data_ptr(), t.nbytes) for t in tensors_of(model)]
        calls = _calls(ours, theirs)

        def read() -> None:
            for here, there, count, nbytes in calls:
                got = LIBC.process_vm_readv(
                    *(pid, _address(here), count, _address(there), count, 0)
                )
                if got != nbytes:
                    raise OSError(ctypes.get_errno(), f"process_vm_readv: {got} of {nbytes} bytes")

        return read


Call = tuple["array.array[int]", "array.array[int]", int, int]


def _calls(ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> list[Call]:
    """Vectors of each call: address and length of each piece, here and there."""
    pieces = [
        (here + start, there + start, min(STEP, nbytes - start))
        for (here, nbytes), (there, _) in zip(ours, theirs, strict=True)
        for start in range(0, nbytes, STEP)
    ]
    calls: list[Call] = []
    begin = 0
    while begin < len(pieces):
        end, nbytes = begin, 0
        while end < len(pieces) and end - begin < MOST_VECTORS and nbytes < STEP:
            nbytes += pieces[end][2]
            end += 1
        group = pieces[begin:end]
        here = array.array("Q", [word for a, _, n in group for word in (a, n)])
        there = array.array("Q", [word for _, a, n in group for word in (a, n)])
        calls.append((here, there, len(group), nbytes))
        begin = end
    return calls


def _address(words: "array.array[int]") -> ctypes.c_void_p:
    return ctypes.c_void_p(words.buffer_info()[0])


def addresses(stage: Stage, reader: int) -> tuple[int, list[tuple[int, int]]]:
    """Number of the sending process, and where its tensors are; `reader` may read them then."""
    LIBC.prctl(PR_SET_PTRACER, ctypes.c_ulong(reader), 0, 0, 0)
    return os.getpid(), [(t.data_ptr(), t.nbytes) for t in tensors_of(stage.model)]


def whole_sample(stage: Stage) -> bytes:
    """The first bytes of the model, for a copy to be recognized by."""
    return bytes(views_of(stage.model)[0][:4096])
