"""Contenders in turns, so that whatever else the machine does meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.contenders.base import Contender
from benchmarks.sender import Sender, samples, sending
from benchmarks.target import Memory, Target
from benchmarks.workload import GIB, Workload

SLOW_S: Final = 1.5
"""Whoever takes longer than this in the round that is not counted is measured twice only."""


@dataclass
class Result:
    """What was measured of one contender with one workload and one kind of memory."""

    workload: str
    memory: str
    contender: str
    kind: str
    rates: list[float] = field(default_factory=list)
    """GiB/s, one for each round."""

    @property
    def median(self) -> float:
        """GiB/s."""
        return statistics.median(self.rates)


@dataclass
class Contest:
    """Everything that a run of contenders found."""

    results: list[Result] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Why a contender did not take part."""


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compete(
    workload: Workload, contenders: Sequence[Contender], rounds: int, say: Callable[[str], None]
) -> Contest:
    """All contenders on one workload, in fresh and in touched memory."""
    contest = Contest()
    taking_part = []
    for contender in contenders:
        if why := contender.obstacle():
            contest.absent[contender.name] = why
        elif workload.name in contender.workloads:
            taking_part.append(contender)
    with sending(workload) as sender:
        for memory in Memory:
            say(f"{workload.title}, {memory.value} memory: {len(taking_part)} contenders")
            target = Target(workload, memory)
            runners = [_Runner(each, sender, target, contest) for each in taking_part]
            for number in range(rounds + 1):
                for runner in runners:
                    runner.turn(number)
                target.free()
            contest.results += [runner.result for runner in runners if runner.result.rates]
    return contest


class _Runner:
    """One contender's turns. The first is not counted: it shows that the right bytes arrive."""

    def __init__(
        self, contender: Contender, sender: Sender, target: Target, contest: Contest
    ) -> None:
        self._contender = contender
        self._sender = sender
        self._target = target
        self._contest = contest
        self._out = False
        self._slow = False
        where = (target.workload.name, target.memory.value)
        self.result = Result(*where, contender.name, contender.kind)

    def turn(self, number: int) -> None:
        """Measure once, unless it has failed before."""
        if self._out or (self._slow and number > 2):
            return
        try:
            took = seconds(self._contender.prepare(self._sender, self._target))
            if number == 0:
                self._check()
                self._slow = took > SLOW_S
        except Exception as error:  # noqa: BLE001 - the others go on
            self._out = True
            where = f"{self._contender.name} ({self._target.workload.name})"
            self._contest.absent[where] = f"{type(error).__name__}: {error}"[:300]
            return
        if number:
            self.result.rates.append(self._target.workload.nbytes / GIB / took)

    def _check(self) -> None:
        theirs: Any = self._sender.do(samples)
        ours = self._target.received()
        if ours != theirs[: len(ours)]:
            raise RuntimeError("other bytes arrived than were sent")
