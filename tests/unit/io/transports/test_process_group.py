"""The process group transport over real gloo: all bytes, in place, and an end to every wait."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.transports import TransferError
from netloader.io.transports.backends import CLIENT
from netloader.io.transports.peer_group import PeerGroup
from tests.unit.io.helpers import (
    KIB,
    MIB,
    SOON_S,
    contents,
    eventually,
    module_of,
    places,
    random,
    zoo,
)
from tests.unit.io.transports.ends import Ends, Join

ABORT_S = 2.0
"""An abort takes milliseconds; a second is promised; two cores may be busy."""


def big() -> nn.Module:
    """More than gloo and its sockets hold, so that both ends block."""
    return module_of(w=torch.zeros(64 * MIB, dtype=torch.uint8))


def moved(ends: Ends) -> None:
    """Run both ends to their end."""
    ends.open()
    sent, received = ends.send(), ends.receive()
    assert sent.wait()
    assert received.wait()
    assert sent.failure == received.failure == []
    assert sent.result == received.result == [ends.ledger.total]


@pytest.mark.parametrize("segment_bytes", [64 * KIB, 16 * MIB])
def test_every_kind_of_tensor_arrives_in_place(join: Join, segment_bytes: int) -> None:
    source, target = zoo(1), zoo(100)
    before = places(target)

    moved(join("gloo", source, target, segment_bytes=segment_bytes))

    assert contents(target) == contents(source)
    assert places(target) == before


def test_more_segments_than_are_in_flight_arrive(join: Join) -> None:
    source, target = module_of(w=random(MIB)), module_of(w=random(MIB, seed=1))

    moved(join("gloo", source, target))

    assert contents(target) == contents(source)


def test_only_the_segments_asked_for_are_sent(join: Join) -> None:
    source, target = module_of(w=random(MIB)), module_of(w=random(MIB, seed=9))
    ends = join("gloo", source, target)
    some = ends.segments[3:40:5]
    ends.open()

    sent, received = ends.send(some), ends.receive(some)

    assert sent.wait()
    assert received.wait()
    assert sent.result == received.result == [sum(s.nbytes for s in some)]
    assert ends.ledger.progress.verified == {s.index for s in some}


def test_a_byte_changed_on_the_way_is_refused(join: Join) -> None:
    source, target = module_of(w=random(MIB)), module_of(w=random(MIB, seed=1))
    ends = join("gloo", source, target)
    source.get_parameter("w").data[500_000] += 1
    ends.open()
    ends.send()
    received = ends.receive()

    assert received.wait()
    assert received.failure[0].reason is Reason.DIGEST_MISMATCH


def test_thousands_of_small_tensors_take_few_operations(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[int] = []
    post = PeerGroup.post

    def noted(group: PeerGroup, buffer: torch.Tensor) -> None:
        posted.append(len(buffer))
        post(group, buffer)

    monkeypatch.setattr(PeerGroup, "post", noted)
    source = module_of(**{f"w{i}": random(10 * KIB, seed=i) for i in range(500)})
    target = module_of(**{f"w{i}": random(10 * KIB) for i in range(500)})

    moved(join("gloo", source, target, segment_bytes=8 * MIB))

    assert contents(target) == contents(source)
    assert len(posted) == 2 * 3  # three segments, on both sides


# -- the host's own process groups ---------------------------------------------------------------


@pytest.fixture
def default_group() -> Iterator[Any]:
    store = HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_the_hosts_default_group_is_neither_made_nor_touched(join: Join) -> None:
    assert not dist.is_initialized()
    moved(join("gloo", zoo(1), zoo(2)))
    assert not dist.is_initialized()


def test_a_host_with_a_default_group_keeps_it(join: Join, default_group: Any) -> None:
    moved(join("gloo", zoo(1), zoo(2)))

    assert dist.group.WORLD is default_group
    assert dist.get_world_size() == 1
    dist.barrier()


def test_the_environment_does_not_reach_into_the_group(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MASTER_ADDR": "192.0.2.1",
        "MASTER_PORT": "1",
        "RANK": "5",
        "WORLD_SIZE": "9",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "nonexistent0",
        "http_proxy": "http://192.0.2.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    source, target = zoo(1), zoo(2)

    moved(join("gloo", source, target))

    assert contents(target) == contents(source)


def test_two_transfers_at_once_do_not_meet(join: Join) -> None:
    pairs = [(zoo(seed), zoo(seed + 10)) for seed in (1, 2)]
    all_ends = [join("gloo", source, target) for source, target in pairs]
    for ends in all_ends:
        ends.open()
    endings = [e for ends in all_ends for e in (ends.send(), ends.receive())]

    assert all(ending.wait() and not ending.failure for ending in endings)
    for source, target in pairs:
        assert contents(target) == contents(source)


def test_descriptors_come_back(join: Join) -> None:
    def transfer() -> None:
        ends = Ends("gloo", zoo(1), zoo(2))
        moved(ends)
        ends.close()

    transfer()  # what gloo opens once and keeps
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a listing of names is all
    for _ in range(5):
        transfer()

    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)  # noqa: PTH208


# -- ends that come early ------------------------------------------------------------------------


class Pause:
    """Something that lets two calls pass and holds the third until the test is over."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.over = threading.Event()
        self._calls = 0

    def __call__(self, *_: object) -> None:
        self._calls += 1
        if self._calls == 3:
            self.reached.set()
            self.over.wait(SOON_S)


Views: TypeAlias = Callable[[Segment], Iterator[memoryview]]


def after(pause: Pause, views: Views) -> Views:
    """Views of a segment, after a pause."""

    def paused(segment: Segment) -> Iterator[memoryview]:
        pause()
        return views(segment)

    return paused


@pytest.fixture
def pause() -> Iterator[Pause]:
    held = Pause()
    yield held
    held.over.set()


def test_the_next_chunk_arrives_while_one_is_verified(
    join: Join, pause: Pause, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[int] = []
    arrive = PeerGroup.arrive

    def noted(group: PeerGroup) -> None:
        arrive(group)
        arrived.append(vars(group)["_rank"])

    monkeypatch.setattr(PeerGroup, "arrive", noted)
    ends = join("gloo", big(), big(), segment_bytes=MIB, report=pause)
    ends.open()
    sent, received = ends.send(), ends.receive()
    assert pause.reached.wait(SOON_S)  # the third segment is being verified

    assert eventually(lambda: arrived.count(CLIENT) == 4)
    pause.over.set()
    assert sent.wait()
    assert received.wait()
    assert received.failure == []


def test_an_abort_ends_a_sender_whose_peer_receives_nothing_more(join: Join, pause: Pause) -> None:
    ends = join("gloo", big(), big(), segment_bytes=MIB, report=pause)
    ends.open()
    sent = ends.send()
    ends.receive()
    assert pause.reached.wait(SOON_S)
    start = monotonic()

    ends.sending.abort()
    ends.sending.abort()

    assert sent.wait(ABORT_S)
    assert monotonic() - start < ABORT_S
    assert sent.failure[0].reason is Reason.TRANSFER_FAILED


def test_an_abort_ends_a_receiver_whose_peer_sends_nothing_more(
    join: Join, pause: Pause, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = join("gloo", big(), big(), segment_bytes=MIB)
    monkeypatch.setattr(ends.giving, "views", after(pause, ends.giving.views))
    ends.open()
    received = ends.receive()
    ends.send()
    assert pause.reached.wait(SOON_S)
    start = monotonic()

    ends.receiving.abort()
    ends.receiving.abort()

    assert received.wait(ABORT_S)
    assert monotonic() - start < ABORT_S
    assert received.failure[0].reason is Reason.TRANSFER_FAILED


@pytest.mark.parametrize("silent", ["receiver", "sender"])
def test_a_peer_that_falls_silent_is_noticed_after_one_stall_deadline(
    join: Join, pause: Pause, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    report = pause if silent == "receiver" else lambda done, total: None
    ends = join("gloo", big(), big(), segment_bytes=MIB, stall_s=3.0, report=report)
    if silent == "sender":
        monkeypatch.setattr(ends.giving, "views", after(pause, ends.giving.views))
    ends.open()
    sent, received = ends.send(), ends.receive()
    assert pause.reached.wait(SOON_S)
    start = monotonic()

    waiting = sent if silent == "receiver" else received
    assert waiting.wait()
    assert waiting.failure[0].reason is Reason.TRANSFER_STALLED
    assert monotonic() - start < 5.0


def test_an_abort_ends_a_rendezvous_that_nobody_joins(join: Join) -> None:
    ends = join("gloo", big(), big())
    ends.receiving.open(ends.sending.rendezvous())
    joining = ends.join_receiver()
    ends.receiving.abort()

    assert joining.wait(ABORT_S)
    assert joining.failure[0].reason is Reason.TRANSFER_FAILED


def test_a_rendezvous_that_nobody_joins_ends_with_the_stall_deadline(join: Join) -> None:
    ends = join("gloo", big(), big(), stall_s=0.5)
    ends.receiving.open(ends.sending.rendezvous())
    joining = ends.join_receiver()

    assert joining.wait()
    assert len(joining.failure) == 1


def test_the_end_of_one_side_ends_the_other(join: Join) -> None:
    ends = join("gloo", big(), big(), segment_bytes=MIB)
    ends.open()
    sent, received = ends.send(), ends.receive(ends.segments[:3])
    assert received.wait()

    assert sent.wait(ABORT_S)
    assert sent.failure[0].reason is Reason.TRANSFER_FAILED


def test_a_lane_that_cannot_be_opened_is_a_failure(join: Join) -> None:
    def refused(index: int) -> Any:
        raise ConnectionRefusedError

    ends = join("gloo", big(), big(), dial=refused)

    with pytest.raises(TransferError, match=r"could not be opened .ConnectionRefusedError"):
        ends.open()
