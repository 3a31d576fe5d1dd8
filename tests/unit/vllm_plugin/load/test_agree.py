"""Ranks agree on the loader, in time, whatever becomes of one of them. Each is a real process."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from netloader.io.clock import monotonic
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.load import agree

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.unit.vllm_plugin.load.test_agree"])

PATIENCE_S = 120.0
"""How long a rank may take to do as it is told; starting one imports torch."""
SHORT_S = 2.0
"""How long the ranks wait for one that will never say anything."""

Answer = tuple[str, Any]


def _rank(place: str, mine: int, count: int, orders: Connection) -> None:
    """One rank: joins the instance, then answers the test's orders until there are no more."""
    kind, _, where = place.partition(":")
    if kind == "file":
        store: Store = FileStore(where, count)
    else:
        wait = timedelta(seconds=PATIENCE_S)
        store = TCPStore("127.0.0.1", int(where), count, mine == 0, wait)
    dist.init_process_group("gloo", store=store, rank=mine, world_size=count)
    orders.send("ready")
    while (order := orders.recv()) is not None:
        started = monotonic()
        try:
            answer: Answer = ("says", agree.all_received(*order))
        except agree.DisagreementError as error:
            answer = ("gives up", str(error))
        except BaseException as error:
            answer = ("breaks", repr(error))
        orders.send((*answer, monotonic() - started))
    os._exit(0)  # without goodbyes: the others may be gone


class Instance:
    """The ranks of one instance."""

    def __init__(self, place: str, count: int) -> None:
        self.ranks = tuple(range(count))
        pairs = [FORKS.Pipe() for _ in self.ranks]
        self._pipes = [pair[0] for pair in pairs]
        self._processes = [
            FORKS.Process(target=_rank, args=(place, mine, count, pairs[mine][1]), daemon=True)
            for mine in self.ranks
        ]
        for process, (_, far) in zip(self._processes, pairs, strict=True):
            process.start()
            far.close()
        for mine in self.ranks:
            assert self._hear(mine) == "ready"

    def tell(self, mine: int, received: bool, role: str = TARGET, timeout_s: float = 60) -> None:
        """Have one rank tell the others what became of it."""
        self._pipes[mine].send((received, role, self.ranks, timeout_s))

    def answers(self, *of: int) -> list[Answer]:
        """What these ranks came to (all, unless said)."""
        return [self._hear(mine)[:2] for mine in of or self.ranks]

    def seconds(self, mine: int) -> tuple[Answer, float]:
        """What a rank came to, and how long that took."""
        *answer, seconds = self._hear(mine)
        return (answer[0], answer[1]), seconds

    def kill(self, mine: int) -> None:
        """End a rank as the kernel would."""
        self._processes[mine].kill()
        self._processes[mine].join(PATIENCE_S)

    def close(self) -> None:
        """Let every rank go."""
        for pipe in self._pipes:
            with suppress_broken():
                pipe.send(None)
        for process in self._processes:
            process.join(PATIENCE_S)
            process.close()

    def _hear(self, mine: int) -> Any:
        assert self._pipes[mine].poll(PATIENCE_S), f"rank {mine} is stuck"
        return self._pipes[mine].recv()


@contextmanager
def suppress_broken() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, OSError):  # it was killed
        return


Start = Callable[..., Instance]


def _free_port() -> int:
    """Of a store that is bound by rank 0 later; nobody else here asks for ports that are free."""
    store = TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False)
    return int(store.port)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Instance] = []

    def make(count: int, kind: str = "file") -> Instance:
        where = _free_port() if kind == "tcp" else tmp_path / f"store-{len(started)}"
        started.append(Instance(f"{kind}:{where}", count))
        return started[-1]

    yield make
    for instance in started:
        instance.close()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", ["file", "tcp"])
def test_all_hear_the_same(start: Start, count: int, kind: str) -> None:
    instance = start(count, kind)
    for missing in (None, *instance.ranks):
        for mine in instance.ranks:
            instance.tell(mine, mine != missing)
        assert instance.answers() == [("says", missing is None)] * count


def test_a_round_does_not_hear_the_answers_of_the_one_before(start: Start) -> None:
    # Rank 1 is slow: when the others come to the second round, only its first answer is there.
    instance = start(2)
    instance.tell(0, True)
    instance.tell(1, True)
    assert instance.answers() == [("says", True)] * 2
    instance.tell(0, True)
    assert not instance._pipes[0].poll(0.5)
    instance.tell(1, False)
    assert instance.answers() == [("says", False)] * 2


def test_the_roles_have_rounds_of_their_own(start: Start) -> None:
    instance = start(2)
    for role, received in ((TARGET, False), (DRAFT, True), (TARGET, True)):
        for mine in instance.ranks:
            instance.tell(mine, received, role)
        assert instance.answers() == [("says", received)] * 2


@pytest.mark.parametrize("silent", [0, 2])
def test_a_silent_rank_is_named_in_time_by_all_others(start: Start, silent: int) -> None:
    instance = start(3)
    others = [mine for mine in instance.ranks if mine != silent]
    for mine in others:
        instance.tell(mine, True, TARGET, SHORT_S)
    named = 0
    for mine in others:
        (word, detail), seconds = instance.seconds(mine)
        assert word == "gives up"
        assert f"within {SHORT_S:g} s" in detail
        assert "AGREE_TIMEOUT_S" in detail
        assert seconds < SHORT_S * 2 + 10
        named += f"rank {silent} " in detail
    assert named >= 1

    instance.tell(silent, True, TARGET, PATIENCE_S)  # late: it hears that the others have given up
    ((word, _), seconds) = instance.seconds(silent)
    assert word == "gives up"
    assert seconds < PATIENCE_S / 2


@pytest.mark.parametrize("killed", [1, 0])
def test_a_killed_rank_ends_the_others_with_an_error_that_names_it(
    start: Start, killed: int
) -> None:
    # Rank 0 has the store in its own process: that goes with it.
    instance = start(3, "tcp")
    others = [mine for mine in instance.ranks if mine != killed]
    instance.kill(killed)
    for mine in others:
        instance.tell(mine, True, TARGET, SHORT_S)
    for mine in others:
        (word, detail), seconds = instance.seconds(mine)
        assert (word, "has not said" in detail) == ("gives up", True), detail
        assert seconds < SHORT_S * 2 + 10


def test_a_rank_killed_while_the_others_wait_ends_their_wait(start: Start) -> None:
    instance = start(2, "tcp")
    instance.tell(1, True, TARGET, SHORT_S)
    assert not instance._pipes[1].poll(0.2)
    instance.kill(0)
    assert instance.seconds(1)[0][0] == "gives up"


@pytest.mark.parametrize(
    ("load_format", "company", "answer"),
    [
        ("auto", (0, 1), False),
        ("SafeTensors", (0, 1), False),
        ("sharded_state", (0, 1), False),
        ("fastsafetensors", (0, 1), True),
        ("somebody_elses", (0, 1), True),
        ("fastsafetensors", (0,), False),
    ],
)
def test_who_must_agree(load_format: str, company: tuple[int, ...], answer: bool) -> None:
    assert agree.needs_agreement(load_format, company) is answer
