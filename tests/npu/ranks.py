"""Ranks of one HCCL group, as real processes that do what a test tells them, step by step.

A rank knows torch_npu and its simulator, and nothing of netloader: these tests are about the
fidelity of the simulator. Steps are functions of the test module, called with the rank's `World`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import torch
from torch._C._distributed_c10d import PrefixStore, TCPStore

import tests.npu.peers  # for what the processes are forked from
from tests.npu.simulator import torch_npu
from tests.support.peers import Line, Peer, Spec, Watch, Words, orders

assert tests.npu.peers

HOST: Final = "127.0.0.1"
STOPPED: Final = 2
"""`ProcessGroupHCCL.set_watchdog_status`: the watchdog neither waits nor kills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec(Spec):
    """Which rank of how many, where the store is, and its environment."""

    rank: int
    ranks: int
    store: int
    knobs: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = 600.0
    """The group's own time-out, which only the watchdog looks at."""
    config: Mapping[str, int] = field(default_factory=dict)
    watchdog: int = STOPPED
    device: int = 0


@dataclass(slots=True)
class World:
    """What a step may use."""

    spec: RankSpec
    group: Any
    store: TCPStore
    kept: dict[str, Any] = field(default_factory=dict)
    """What a step leaves for the next."""

    @property
    def rank(self) -> int:
        return self.spec.rank

    @property
    def other(self) -> int:
        return 1 - self.spec.rank


Step = Callable[..., Any]


def new_group(spec: RankSpec, store: TCPStore, name: str = "first") -> Any:
    """A process group of all ranks, made as a transport makes its own."""
    from torch_npu._C._distributed_c10d import ProcessGroupHCCL

    options = ProcessGroupHCCL.Options()
    options._timeout = timedelta(seconds=spec.limit_s)
    options.global_ranks_in_group = list(range(spec.ranks))
    options.hccl_config = dict(spec.config)
    group = ProcessGroupHCCL(PrefixStore(name, store), spec.rank, spec.ranks, options)
    group.set_watchdog_status(spec.watchdog)
    return group


def act_as_rank(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Take the steps that the test sends, and say what came of each."""
    assert isinstance(spec, RankSpec)
    os.environ.update(spec.knobs)
    torch_npu.npu.set_device(spec.device)
    store = TCPStore(HOST, spec.store, is_master=False, timeout=timedelta(seconds=60))
    world = World(spec, new_group(spec, store), store)
    for step, arguments in orders(line):
        try:
            say(answer=step(world, *arguments))
        except Exception as error:
            say(error=str(error))


class Rank(Peer):
    """One rank, seen from the test."""

    def __init__(self, spec: RankSpec) -> None:
        super().__init__(act_as_rank, spec)
        self.pid = self.process.pid or 0

    def begin(self, step: Step, *arguments: Any) -> None:
        """Let it take a step."""
        self.tell((step, arguments))

    def answer(self) -> Any:
        """What came of the step; a failure fails the test."""
        words = self.hear()
        assert "error" not in words, words["error"]
        return words["answer"]

    def failure(self) -> str:
        """Why the step failed."""
        words: Words = self.hear()
        assert "error" in words, f"it did not fail: {words['answer']}"
        return str(words["error"])

    def takes(self, step: Step, *arguments: Any) -> Any:
        """Let it take a step, and wait for the end of it."""
        self.begin(step, *arguments)
        return self.answer()


@contextmanager
def ranks(count: int, knobs: Mapping[str, str] | None = None, **specs: Any) -> Iterator[list[Rank]]:
    """So many ranks, each on a host of its own; the store outlives them all."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Rank(
                    RankSpec(
                        rank=rank,
                        ranks=count,
                        store=store.port,
                        knobs={"SIM_HOST_ID": f"host{rank}", **(knobs or {})},
                        **specs,
                    )
                )
            )
            for rank in range(count)
        ]


def together(all_ranks: list[Rank], step: Step, *arguments: Any) -> list[Any]:
    """Let all of them take a step at the same time."""
    for rank in all_ranks:
        rank.begin(step, *arguments)
    return [rank.answer() for rank in all_ranks]


def synchronize(world: World) -> None:
    """Wait for all that was queued; raises when a stream failed."""
    torch_npu.npu.synchronize()


def other_memory(world: World) -> int:
    """Bytes of the device that are taken beside torch's own: by communicators."""
    free, total = torch_npu.npu.mem_get_info()
    return int(total - free - torch_npu.npu.memory_reserved())


def noise(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Random bytes, read as this type (NaNs and all)."""
    width = torch.empty(0, dtype=dtype).element_size()
    made = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, (count,), generator=made).bool()
    data = torch.randint(0, 256, (count * width,), generator=made, dtype=torch.uint8)
    return data.view(dtype)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors on the host hold the same."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
