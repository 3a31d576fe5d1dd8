"""Limits: of memory, of sizes, of communicators at a time, of what the engine may notice."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from tests.npu.topology import IMPATIENT, SHORT, Cast, served, soon
from tests.support.peers import MIB
from tests.support.planting import copied, planted

MANY = 50
SLOWER = 10.0
"""How many times as long an answer may take during a transfer, in the middle of all: two processes
that move and hash as fast as they can share two cores with the engine that is measured."""


def all_ended(cast: Cast, pid: int) -> bool:
    return all(end < math.inf for _, end in cast.trace.communicators(pid))


def assert_no_collective(cast: Cast, *pids: int) -> None:
    for pid in pids:
        assert cast.operations(pid) == []
        assert cast.trace.communicators(pid) == []


def test_another_model_is_refused_before_any_collective(cast: Cast) -> None:
    server = cast.server(model="every_kind")
    client = cast.client(server, model="plain")

    outcome = client.hear()

    assert not outcome["ok"]
    assert outcome["attempts"][0]["reason"] == "manifest_mismatch"
    assert_no_collective(cast, server.pid, client.pid)


def test_a_build_that_cuts_otherwise_is_refused_before_any_collective(
    cast: Cast, tmp_path: Path
) -> None:
    server = cast.server()
    copy = copied(tmp_path, "netloader")
    otherwise = "CHUNK_BYTES = 4096"
    with planted(copy, "netloader/io/chunks.py", r"CHUNK_BYTES = \d+ << 20", otherwise):
        client = cast.client(server, source=str(copy))
        outcome = client.hear()

    assert not outcome["ok"]
    assert "chunks" in outcome["attempts"][0]["detail"]
    assert_no_collective(cast, server.pid, client.pid)


def test_unless_they_are_compared_other_sizes_are_for_hccl_to_find(
    cast: Cast, tmp_path: Path
) -> None:
    unaware, otherwise = (copied(tmp_path / name, "netloader") for name in ("server", "client"))
    compare = ("netloader/io/transports/peer_group.py", r"if theirs != sizes:", "if False:")
    cut = ("netloader/io/chunks.py", r"CHUNK_BYTES = \d+ << 20", "CHUNK_BYTES = 4096")
    told = ("netloader/io/transports/process_group.py", r"if rendezvous\.get\(.*:", "if False:")
    with (
        planted(unaware, *compare),
        planted(otherwise, *compare),
        planted(otherwise, *told),
        planted(otherwise, *cut),
    ):
        server = cast.server(source=str(unaware), deadlines=SHORT)
        client = cast.client(server, source=str(otherwise), deadlines=SHORT)
        outcome = client.hear()

    assert not outcome["ok"]
    assert len(cast.operations(client.pid)) > 1  # more than the greeting


def test_a_client_without_memory_fails_cleanly_and_takes_another_road(cast: Cast) -> None:
    hccl = cast.server(knobs=IMPATIENT)
    tcp = cast.server(transports=("tcp",))
    client = cast.client(
        hccl, tcp, transports=("hccl", "tcp"), knobs={"SIM_HBM_BYTES": str(64 * MIB)}
    )

    outcome = served(client, tcp)

    assert outcome["attempts"][0]["reason"] == "transfer_failed"
    assert "memory" in outcome["attempts"][0]["detail"]
    served(cast.client(hccl), hccl)


def test_clients_take_turns_because_a_communicator_costs_memory(cast: Cast) -> None:
    server = cast.server(model="large")
    clients = [cast.client(server, device=number % 2) for number in range(3)]

    for client in clients:
        served(client, server)

    spans = sorted(cast.trace.communicators(server.pid))
    assert len(spans) == len(clients)
    for (_, end), (begin, _) in pairwise(spans):
        assert end < begin


def test_the_engine_goes_on_during_a_transfer(cast: Cast) -> None:
    server = cast.server(model="large")
    server.becomes(lambda now: now["answers"] > 100)
    served(cast.client(server), server)
    ((begin, end),) = cast.trace.communicators(server.pid)
    times = server.ask("times")["times"]
    during = [took for at, took in times if begin < at < end]
    before = [took for at, took in times if at < begin]

    slower = median(during) / median(before)
    print(f"{len(during)} answers during the transfer, {slower:.1f} times as slow as before")
    assert len(during) > 10
    assert slower < SLOWER


@pytest.mark.timeout(300)
def test_fifty_transfers_leave_nothing_behind(cast: Cast) -> None:
    server = cast.server()
    client = cast.client(server, fills=MANY)
    for number in range(MANY):
        outcome = client.hear()
        assert outcome["ok"], outcome["attempts"]
        assert outcome["digest"] == server.digest
        if number == MANY // 5:
            early, calm = outcome, server.ask()

    assert outcome["torch_bytes"] <= early["torch_bytes"]
    assert outcome["other_bytes"] == early["other_bytes"]
    for peer in (server, client):
        assert len(cast.trace.communicators(peer.pid)) == MANY
        soon(partial(all_ended, cast, peer.pid), "all communicators are gone")
    print(calm, server.ask(), sep="\n")
    server.becomes(lambda now: now["threads"] <= calm["threads"])
    server.becomes(lambda now: now["files"] <= calm["files"])
    server.becomes(lambda now: now["torch_bytes"] <= calm["torch_bytes"])
    server.becomes(lambda now: now["other_bytes"] == server.bare["other_bytes"])
