"""Engines of several ranks: each rank is filled by its own source, and no rank waits for ever."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.commands import folder_served, netloader
from tests.e2e.engines import START_S, ForkServer
from tests.e2e.source_logs import (
    INSIDE,
    ONLY_SOURCES,
    STAGES,
    Model,
    failing,
    inventory,
    latest_log,
    made,
    only,
    received,
    replicator,
    said,
    serving,
    sources,
)
from tests.support.ports import free_port
from tests.support.zoo import dense, experts
from tests.unit.io.helpers import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

FELL_BACK = "netloader.fallback.engaged"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return made(tmp_path_factory.mktemp("llama"), dense.llama())


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return made(tmp_path_factory.mktemp("mixtral"), experts.mixtral())


def dead() -> str:
    return f"127.0.0.1:{free_port()}"


def test_experts_cut_in_two_and_a_rank_whose_source_is_dead(
    fork_server: ForkServer, mixtral: Model, tmp_path: Path
) -> None:
    with serving(fork_server, mixtral.full, tmp_path, ranks=2) as (server, at):
        expected, held = server.generate(), inventory(server)
        with fork_server.engine(mixtral.bare, only(at), ranks=2) as client:
            assert client.generate() == expected
            assert inventory(client) == held
            assert held[0] != held[1]
        with fork_server.engine(mixtral.full, sources([dead(), at[1]]), ranks=2) as mixed:
            assert received(mixed, "netloader.rank=1") == received(mixed) == 1
            assert len(said(mixed, FELL_BACK, "unreachable")) == 1
            assert mixed.generate() == expected
            assert inventory(mixed) == held


def test_each_pipeline_stage_takes_its_own_layers(
    fork_server: ForkServer, llama: Model, tmp_path: Path
) -> None:
    with fork_server.engine(llama.full, {}) as whole:
        expected = whole.generate()
    with serving(fork_server, llama.full, tmp_path, ranks=2, **STAGES) as (server, at):
        with fork_server.engine(llama.bare, only(at), ranks=2, **STAGES) as client:
            assert received(client, "netloader.rank=0") == received(client, "netloader.rank=1") == 1
            assert inventory(client) == inventory(server)
            client.rpc("make_room_between_stages")
            assert client.generate() == expected
        log = failing(fork_server, llama.bare, only(at[::-1]), ranks=2, **STAGES)
        assert "differing: pipeline_parallel" in log


def two_free_ports() -> int:
    """The first of two neighbours."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


def test_one_port_is_the_source_of_both_ranks_also_that_of_a_snapshot(
    fork_server: ForkServer, llama: Model, tmp_path: Path
) -> None:
    port = two_free_ports()
    at_one_port = {"LISTEN_PORT": port}
    with serving(fork_server, llama.full, tmp_path, 2, at_one_port) as (server, at):
        assert at == [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
        one = {"SOURCE": f"127.0.0.1:{port}", **ONLY_SOURCES}
        with fork_server.engine(llama.bare, one, ranks=2) as client:
            assert received(client, "netloader.rank=0") == received(client, "netloader.rank=1") == 1
            assert inventory(client) == inventory(server)
            assert client.generate() == server.generate()
        expected, held = server.generate(), inventory(server)
        words = ("--out", str(tmp_path / "kept"), "--checkpoint", str(llama.full), "--json")
        told = json.loads(netloader("snapshot", f"127.0.0.1:{port + 1}", *words))
        assert told["kept_bytes"] < told["bytes"] / 20, "vLLM's tensors are in the checkpoint"
    with folder_served(tmp_path / "kept") as where:  # nothing else runs
        one = {"SOURCE": where, **ONLY_SOURCES}
        with fork_server.engine(llama.bare, one, ranks=2) as client:
            assert received(client, "netloader.rank=0") == received(client, "netloader.rank=1") == 1
            assert inventory(client) == held
            assert client.generate() == expected


@pytest.mark.skipif(
    torch.cpu._is_amx_tile_supported(), reason="vLLM's replicas end with SIGILL where there is AMX"
)
def test_replicas_on_one_host_do_not_get_in_each_others_way(
    fork_server: ForkServer, llama: Model, tmp_path: Path
) -> None:
    """Two servers have one configuration, and so have two clients."""
    port, prefix = two_free_ports(), tmp_path / "replica-"
    with fork_server.engine(llama.full, {}) as whole, replicator(fork_server) as start:
        expected = whole.generate()
        tokens, _ = start(llama.full, {"LISTEN_PORT": port, "OUTPUT_PREFIX": str(prefix)})
        assert tokens == [expected, expected]
        at = [Path(f"{prefix}{replica}.txt").read_text() for replica in range(2)]
        assert at == [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
        tokens, log = start(llama.bare, only(at))
        assert tokens == [expected, expected]
        for replica, endpoint in enumerate(at):
            source = f"netloader.source={endpoint} netloader.source.attempt=1 netloader.role=target"
            (line,) = (line for line in log.splitlines() if source in line)
            assert f"netloader.rank={replica} " in line


def test_experts_dealt_out_to_two_ranks(
    fork_server: ForkServer, mixtral: Model, tmp_path: Path
) -> None:
    """They load and are compared; vLLM's forward with expert parallelism crashes on this CPU."""
    dealt: dict[str, Any] = {"ranks": 2, "enable_expert_parallel": True}
    with serving(fork_server, mixtral.full, tmp_path, **dealt) as (server, at):
        held = inventory(server)
        with fork_server.engine(mixtral.bare, only(at), **dealt) as client:
            assert inventory(client) == held
            assert held[0] != held[1]
        log = failing(fork_server, mixtral.bare, only(at[::-1]), **dealt)
        assert "differing: tensor_parallel, expert_parallel" in log
        log = failing(fork_server, mixtral.bare, only(at), ranks=2)
        assert "differing: expert_parallel" in log


def test_no_rank_is_left_alone_with_a_loader_that_needs_all(
    fork_server: ForkServer, llama: Model, tmp_path: Path
) -> None:
    """Rank 1 was filled, and yet takes part in what rank 0 has to do."""
    together = {"FALLBACK": "in_step"}
    with serving(fork_server, llama.full, tmp_path, ranks=2) as (server, at):
        with fork_server.engine(
            llama.full, {**sources([dead(), at[1]]), **together}, 2, worker_extension_cls=INSIDE
        ) as client:
            assert received(client, "netloader.rank=1") == 1
            assert len(said(client, FELL_BACK, "unreachable")) == 1
            assert len(said(client, FELL_BACK, "this rank was filled, another rank")) == 1
            assert client.log().count("in step: rank") == 2
            assert client.generate() == server.generate()
        with fork_server.engine(
            llama.bare, {**sources(at), **together}, 2, worker_extension_cls=INSIDE
        ) as filled:
            assert "in step" not in filled.log()
            assert filled.generate() == server.generate()


@contextlib.contextmanager
def trap(strike: Callable[[], None]) -> Iterator[str]:
    """A source that says nothing, and strikes when somebody comes."""
    guests: list[socket.socket] = []

    def attend() -> None:
        with contextlib.suppress(OSError):
            guests.append(listener.accept()[0])
            strike()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=attend)
        thread.start()
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for guest in guests:
                guest.close()


def test_a_silent_rank_is_named_in_time(fork_server: ForkServer, llama: Model) -> None:
    patience = {"FALLBACK": "in_step", "AGREE_TIMEOUT_S": 1, "HANDSHAKE_TIMEOUT_S": 600}
    with trap(lambda: None) as silent:
        extra = {**sources([dead(), silent]), **patience}
        log = failing(fork_server, llama.full, extra, ranks=2, worker_extension_cls=INSIDE)
    assert "DisagreementError: rank 1 has not said within 1 s" in log
    assert "in step" not in log


def test_a_rank_that_dies_takes_the_others_with_it(fork_server: ForkServer, llama: Model) -> None:
    """Rank 0 waits for its word, for as long as AGREE_TIMEOUT_S; vLLM ends it at once."""

    killed: list[int] = []

    def worker(rank: int) -> int:
        named = re.findall(rf"Worker_TP{rank} pid=(\d+)", latest_log(fork_server))
        return int(named[0])

    def kill() -> None:
        killed.append(worker(1))
        os.kill(killed[0], signal.SIGKILL)

    with trap(kill) as deadly:
        extra = {**sources([dead(), deadly]), "FALLBACK": "in_step"}
        failing(fork_server, llama.full, extra, ranks=2, worker_extension_cls=INSIDE)
    workers = [Path(f"/proc/{pid}") for pid in (worker(0), *killed)]
    assert len(workers) == 2
    assert eventually(lambda: not any(path.exists() for path in workers), START_S)
