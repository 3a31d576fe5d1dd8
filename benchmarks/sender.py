"""The sending process: it holds one model, and does what the contenders ask of it.

A contender's own function runs there, with the `Stage` as its first argument, so what a contender
does at each end is in one file.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from torch import nn

from benchmarks.target import sample
from benchmarks.workload import WORKLOADS, Workload, scramble, tensors_of

HOST: Final = "127.0.0.1"
SEED: Final = 7
END_S: Final = 20.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Stage:
    """What is there in the sending process."""

    workload: Workload
    model: nn.Module
    kept: dict[object, Any] = field(default_factory=dict)
    """By whatever key a contender chooses: servers, sockets, agents."""

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` returned when it was first asked for."""
        if key not in self.kept:
            self.kept[key] = make()
        made: T = self.kept[key]
        return made


class Sender:
    """The sending process, from outside."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def do(
        self, function: Callable[Concatenate[Stage, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function (of a module, not a closure) there, and return its answer.

        Raises:
            RuntimeError: it failed there.
        """
        self._pipe.send((function, args, kwargs))
        answer, error = self._pipe.recv()
        if error:
            raise RuntimeError(f"the sending process: {error}")
        returned: T = answer
        return returned


@contextmanager
def sending(workload: Workload) -> Iterator[Sender]:
    """A process that holds the workload, filled with bytes that are the same each time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_live, args=(theirs, workload.name), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Sender(ours)
    finally:
        ours.close()
        process.join(END_S)
        process.kill()


def samples(stage: Stage) -> list[bytes]:
    """The beginnings of the first and the last tensor."""
    tensors = tensors_of(stage.model)
    return [sample(tensors[0]), sample(tensors[-1])]


def _live(pipe: Connection, name: str) -> None:
    workload = WORKLOADS[name]
    stage = Stage(workload, workload.build())
    scramble(stage.model, SEED)
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((function(stage, *args, **kwargs), ""))
        except Exception as error:  # noqa: BLE001 - told to the other side
            pipe.send((None, f"{type(error).__name__}: {error}"))
    for kept in stage.kept.values():
        if hasattr(kept, "close"):
            kept.close()
