"""The shm transport: all bytes, the same host or nothing, and an end to every wait."""

from pathlib import Path

import pytest
import torch

from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.transports import TransferError
from tests.unit.io.helpers import (
    IDENTITY,
    MIB,
    asking,
    contents,
    eventually,
    module_of,
    places,
    random,
    serving,
    zoo,
)
from tests.unit.io.transports.ends import Ends, Join

ABORT_S = 2.0


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def moved(ends: Ends) -> None:
    ends.open()
    sent, received = ends.send(), ends.receive()
    assert sent.wait()
    assert received.wait()
    assert sent.failure == received.failure == []
    assert sent.result == received.result == [ends.ledger.total]


@pytest.mark.parametrize("segment_bytes", [64 << 10, 16 * MIB])
def test_every_kind_of_tensor_arrives_in_place(join: Join, segment_bytes: int) -> None:
    source, target = zoo(1), zoo(100)
    before = places(target)
    moved(join("shm", source, target, segment_bytes=segment_bytes))

    assert contents(target) == contents(source)
    assert places(target) == before


def test_more_than_the_file_holds_arrives(join: Join) -> None:
    source, target = (module_of(w=random(40 * MIB + 3, seed=s, dtype=torch.uint8)) for s in (1, 2))
    moved(join("shm", source, target, segment_bytes=9 * MIB))

    assert contents(target) == contents(source)


@pytest.mark.parametrize("aborted", ["sending", "receiving"])
def test_an_abort_ends_either_side(join: Join, aborted: str) -> None:
    big = module_of(w=torch.zeros(64 * MIB, dtype=torch.uint8))
    ends = join("shm", big, big, segment_bytes=MIB)
    ends.open()
    ending = ends.send() if aborted == "sending" else ends.receive()
    getattr(ends, aborted).abort()

    assert ending.wait(ABORT_S)
    assert ending.failure[0].reason is Reason.TRANSFER_FAILED


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("boot_id", "another", "another host"),
        ("pid", "../1", "no memory file"),
        ("pid", "4194305", "cannot be opened"),
        ("fd", "0", "no memory file|cannot be opened"),
        ("proof", "0" * 64, "not the server's"),
    ],
)
def test_a_peer_that_is_not_shown_to_be_on_this_host_is_left(
    join: Join, field: str, value: str, why: str
) -> None:
    ends = join("shm", zoo(1), zoo(2))

    with pytest.raises(TransferError, match=why):
        ends.receiving.open({**ends.sending.rendezvous(), field: value})
    assert ends.near == []


def test_a_client_that_has_not_read_the_file_gets_nothing(join: Join) -> None:
    ends = join("shm", zoo(1), zoo(2))
    sent = ends.send()
    ends.dial(0).sendall(b"0" * 64)

    assert sent.wait()
    assert "has not read the memory file" in sent.failure[0].detail


def test_descriptors_come_back(join: Join) -> None:
    before = descriptors()
    for _ in range(3):
        ends = Ends("shm", zoo(1), zoo(2))
        moved(ends)
        ends.close()

    assert eventually(lambda: descriptors() <= before)


def test_a_model_is_filled_by_a_server_that_was_asked_for_shm() -> None:
    source, target = zoo(1), zoo(50)
    with serving(source, transports=("shm", "tcp")) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking("shm")).ok
    assert contents(target) == contents(source)
