"""The shm transport: all bytes, the same host or nothing, and an end to every wait."""

import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.store.module import ModuleStore
from netloader.io.transports import TransferError, remote_memory, shm, suited
from netloader.io.transports.remote_memory import IOV_MAX, Spans, Tracer, read_some
from netloader.log import capture, get_logger
from tests.unit.io.helpers import (
    IDENTITY,
    KIB,
    MIB,
    SOON_S,
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


def test_no_word_waits_for_the_one_before_it_to_be_acknowledged(join: Join) -> None:
    """A client's last word would take 40 ms: the server has nothing more to say."""
    ends = join("shm", zoo(1), zoo(100), lanes=2)
    moved(ends)

    lanes = [*ends.near, *ends.far]
    assert len(lanes) == 4
    assert all(lane.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for lane in lanes)


@pytest.mark.parametrize("segment_bytes", [64 << 10, 16 * MIB])
def test_every_kind_of_tensor_arrives_in_place(join: Join, segment_bytes: int) -> None:
    source, target = zoo(1), zoo(100)
    before = places(target)
    moved(join("shm", source, target, segment_bytes=segment_bytes, lanes=2))

    assert contents(target) == contents(source)
    assert places(target) == before


def test_more_pieces_than_one_call_takes_arrive(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(pid: int, into: list[memoryview], spans: Spans) -> int:
        calls.append(pid)
        return read_some(pid, into, spans)

    def small(seed: int) -> nn.Module:
        count = range(3 * IOV_MAX)
        return module_of(**{f"w{i}": random(96, seed=seed + i, dtype=torch.uint8) for i in count})

    source, target = small(1), small(2)
    ends = join("shm", source, target, segment_bytes=MIB)
    monkeypatch.setattr(shm, "read_some", counted)
    moved(ends)

    assert contents(target) == contents(source)
    assert len(calls) == 1 + 3  # the nonce, and as few calls as the kernel takes


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
        ("pid_namespace", "pid:[1]", "another PID namespace"),
        ("pid", "../1", "process is not there"),
        ("pid", "4194305", "process is not there"),
        ("started", "1", "process is not there"),
        ("started", "", "process is not there"),
        ("nonce_at", "8", "cannot be read"),
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


def test_a_client_that_has_not_read_the_nonce_gets_nothing(join: Join) -> None:
    ends = join("shm", zoo(1), zoo(2), stall_s=1.0)
    for answer in ({}, {"proof": "0" * 64}, {"proof": "\udcff"}):
        with pytest.raises(TransferError, match="has not read the server's memory"):
            ends.sending.answered(answer)


def test_the_server_waits_until_all_was_read(join: Join) -> None:
    stopped, go_on = threading.Event(), threading.Event()

    def stop(done: int, total: int) -> None:
        if done == total:
            stopped.set()
            go_on.wait(SOON_S)

    source, target = (module_of(w=random(6 * MIB, seed=s, dtype=torch.uint8)) for s in (1, 2))
    ends = join("shm", source, target, segment_bytes=MIB, report=stop)
    ends.open()
    sent, received = ends.send(), ends.receive()
    assert stopped.wait(SOON_S)
    assert not sent.over.wait(0.2)
    go_on.set()

    assert received.wait()
    assert sent.wait()
    assert received.failure == sent.failure == []
    assert contents(target) == contents(source)


def test_nothing_is_read_after_the_server_has_ended(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    source, target = (module_of(w=random(3 * MIB, seed=s, dtype=torch.uint8)) for s in (1, 2))
    ends = join("shm", source, target, segment_bytes=4 * MIB)

    def ended(pid: int, into: list[memoryview], spans: Spans) -> int:
        calls.append(pid)
        count = read_some(pid, into, spans)
        ends.sending.abort()
        return count

    ends.open()
    monkeypatch.setattr(shm, "read_some", ended)
    sent, received = ends.send(), ends.receive()

    assert received.wait()
    assert sent.wait()
    assert received.failure[0].reason is Reason.TRANSFER_FAILED
    assert len(calls) == 1


def described(lane: socket.socket, *numbers: int) -> None:
    lane.sendall(b"".join(number.to_bytes(8, "little") for number in numbers))


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (lambda lane, n: described(lane, 1 << 40), "as what it is not"),
        (lambda lane, n: described(lane, 0), "as what it is not"),
        (lambda lane, n: described(lane, 1, 4096, n - 1), "as what it is not"),
        (lambda lane, n: described(lane, 1, (1 << 64) - 1, n), "as what it is not"),
        (lambda lane, n: described(lane, 1, 4096, n), "cannot be read .Bad address"),
    ],
)
def test_a_server_that_describes_other_memory_ends_in_a_failure(
    join: Join, says: Callable[[socket.socket, int], None], why: str
) -> None:
    ends = join("shm", zoo(1), zoo(2))
    ends.open()
    says(ends.far[0], ends.segments[0].nbytes)
    received = ends.receive()

    assert received.wait()
    assert why.replace(".", "(") in received.failure[0].detail


def test_changed_memory_is_a_digest_mismatch(join: Join) -> None:
    source = module_of(w=random(64 * KIB, seed=1, dtype=torch.uint8))
    ends = join("shm", source, module_of(w=random(64 * KIB, seed=2, dtype=torch.uint8)))
    ends.open()
    source.get_parameter("w").data[7] ^= 1
    ends.send()
    received = ends.receive()

    assert received.wait()
    assert received.failure[0].reason is Reason.DIGEST_MISMATCH


# -- what the system forbids -----------------------------------------------------------------------


class Yama:
    """A kernel that lets a process be read by the one that it has named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: int = 0) -> None:
        self.named: list[int] = []
        monkeypatch.setattr(Tracer, "needed", staticmethod(lambda: True))
        monkeypatch.setattr(remote_memory, "_LIBC", self)
        monkeypatch.setattr(shm, "read_some", self.read)
        self._answer = names

    def prctl(self, option: int, pid: Any, *_: int) -> int:
        assert option == remote_memory.PR_SET_PTRACER
        self.named.append(pid.value)
        return self._answer

    def read(self, pid: int, into: list[memoryview], spans: Spans) -> int:
        if not self.named or self.named[-1] != os.getpid():
            raise PermissionError(1, "Operation not permitted")
        return read_some(pid, into, spans)


def test_under_yama_the_server_names_its_client_until_the_end(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = zoo(1), zoo(2)
    ends, second = join("shm", source, target), join("shm", source, zoo(3))
    yama = Yama(monkeypatch)
    moved(ends)
    assert yama.named == [os.getpid()]
    yama.named.append(0)  # as seen by the second client: the kernel still permits the first alone
    with pytest.raises(TransferError, match="another process was allowed"):
        second.open()
    second.close()
    ends.close()

    assert contents(target) == contents(source)
    assert yama.named == [os.getpid(), 0, 0]


def refused(pid: int, into: list[memoryview], spans: Spans) -> int:
    raise PermissionError(1, "Operation not permitted")


def test_memory_that_may_not_be_read_is_refused_at_once(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = join("shm", zoo(1), zoo(2))
    monkeypatch.setattr(shm, "read_some", refused)

    with pytest.raises(TransferError, match="may not be read"):
        ends.receiving.open(ends.sending.rendezvous())
    assert ends.near == []


def test_a_sandbox_that_forbids_it_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm, "read_some", refused)
    with capture() as lines:
        assert suited("cpu", get_logger("client")) == ("tcp", "gloo")

    assert lines == []


# -- with the driver -------------------------------------------------------------------------------


def test_descriptors_come_back(join: Join) -> None:
    before = descriptors()
    for _ in range(3):
        ends = Ends("shm", zoo(1), zoo(2))
        moved(ends)
        ends.close()

    assert eventually(lambda: descriptors() <= before)


def used(lines: list[dict[str, Any]]) -> list[Any]:
    closed = (line for line in lines if line["event"] == "netloader.session.closed")
    return [line["netloader.transport"] for line in closed]


def test_on_one_host_a_model_is_read_in_place_without_being_asked_for() -> None:
    source, target = zoo(1), zoo(50)
    with serving(source) as server, capture() as lines:
        assert fill(target, [server.endpoint], IDENTITY, asking(transports=())).ok
        assert eventually(lambda: len(used(lines)) == 2)

    assert contents(target) == contents(source)
    assert used(lines) == ["shm", "shm"]


def test_between_hosts_the_session_goes_on_to_tcp_with_a_debug_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elsewhere() -> Mapping[str, str]:
        return {"boot_id": threading.current_thread().name + str(next(hosts)), "pid_namespace": ""}

    hosts = iter(range(1000))
    monkeypatch.setattr(shm, "this_host", elsewhere)
    source, target = zoo(1), zoo(50)
    with serving(source) as server, capture() as lines:
        outcome = fill(target, [server.endpoint], IDENTITY, asking(transports=()))
        assert eventually(lambda: len(used(lines)) == 2)

    assert [attempt.reason for attempt in outcome.attempts] == [Reason.VERIFIED]
    assert used(lines) == ["tcp", "tcp"]
    (line,) = (each for each in lines if each["event"] == "netloader.transport.refused")
    assert line["severity"] == "DEBUG"
    assert "another host" in line["netloader.detail"]


def test_a_store_that_only_shows_copies_is_read(join: Join) -> None:
    class ReadOnly(ModuleStore):
        def views(self, segment: Any) -> Any:
            return (memoryview(bytes(view)) for view in super().views(segment))

    source, target = zoo(1), zoo(2)
    ends = join("shm", source, target)
    monkey = ReadOnly.of(source)
    ends.sending._store = monkey  # type: ignore[attr-defined]
    moved(ends)

    assert contents(target) == contents(source)
