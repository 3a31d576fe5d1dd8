"""All ranks of an instance on one host are found at one port, whatever becomes of the others."""

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netloader.cli.sources import asking as asking_status
from netloader.cli.sources import token_of
from netloader.cli.status import run as status
from netloader.cli.verify import run as verify
from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.io import Outcome, ServerOptions, fill
from netloader.io.clock import monotonic
from netloader.io.describe import describe
from netloader.io.host_notes import MOST_NOTE_BYTES, HostNotes, users_folder
from netloader.io.published import PublishedModel
from netloader.io.publishing import publish
from netloader.io.store.module import ModuleStore, named_tensors
from netloader.log import capture
from netloader.vllm_plugin.serve.port import PortChoice, RankPort
from tests.support.children import process
from tests.unit.io.helpers import FAST, asking, eventually

HOST = "127.0.0.1"
PATIENCE_S = 60.0

RANK = """
    import sys, threading
    from tests.unit.vllm_plugin.serve.test_instance import rank_of, weights
    port = rank_of(int(sys.argv[1]), int(sys.argv[2]))
    port.offer(weights(int(sys.argv[1])))
    print(port.server.endpoint.port, flush=True)
    threading.Event().wait()
"""
"""A rank that serves until it is killed."""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notes of this test alone, here and in its child processes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def listen_port() -> int:
    """A port that is free with the ten after it."""
    while True:
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            first = held.enter_context(socket.create_server((HOST, 0)))
            port: int = first.getsockname()[1]
            for number in range(1, 10):
                held.enter_context(socket.create_server((HOST, port + number)))
            return port


def identity(rank: int, ranks: int = 10, role: str = "target") -> Identity:
    parts = {"tensor_parallel": f"{rank} of {ranks}", "pipeline_parallel": "0 of 1"}
    return Identity({"model": "tiny", "role": role, "dtype": "float32", **parts})


def module(rank: int) -> nn.Linear:
    found = nn.Linear(64, 64)
    found.weight = nn.Parameter(torch.full((64, 64), rank + 1.0), requires_grad=False)
    return found


OPTIONS = ServerOptions(transports=("tcp",), deadlines=FAST)


def weights(rank: int, role: str = "target") -> PublishedModel:
    store = ModuleStore(named_tensors(module(rank)))
    published = publish(store, identity(rank, role=role), OPTIONS)
    published.seal()
    return published


def rank_of(rank: int, listen_port: int) -> RankPort:
    return RankPort(PortChoice(HOST, listen_port + rank, None, listen_port), OPTIONS)


@contextlib.contextmanager
def ranks(listen_port: int, *numbers: int) -> Iterator[list[RankPort]]:
    """Ranks that serve, each in the knowledge of all."""
    found = [rank_of(number, listen_port) for number in numbers]
    try:
        for number, rank in zip(numbers, found, strict=True):
            assert rank.offer(weights(number))
        others = len(numbers) - 1
        assert eventually(lambda: all(len(siblings(r)) == others for r in found), PATIENCE_S)
        yield found
    finally:
        for rank in found:
            rank.close()


def siblings(rank: RankPort) -> list[int]:
    """The ports of the others, as a rank knows them."""
    assert rank._instance is not None
    return sorted(each.port for each in rank._instance.siblings())


def receive(port: int, rank: int, **options: Any) -> tuple[Outcome, bool]:
    """Be a rank of a client; also whether it has the right bytes."""
    into = nn.Linear(64, 64)
    outcome = fill(into, [Endpoint(HOST, port)], identity(rank), asking(**options))
    return outcome, bool(torch.equal(into.weight, module(rank).weight))


@contextlib.contextmanager
def living(rank: int, listen_port: int) -> Iterator[Any]:
    """A rank in a process of its own, which serves."""
    with process(RANK, str(rank), str(listen_port)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"{listen_port + rank}\n"
        yield child


# -- one port ------------------------------------------------------------------------------------


def test_every_rank_is_found_at_one_port_and_the_detour_is_no_failure(listen_port: int) -> None:
    with ranks(listen_port, 0, 1, 2), capture() as lines:
        for rank in range(3):
            outcome, right = receive(listen_port, rank)
            assert outcome.ok
            assert right
            assert outcome.source == Endpoint(HOST, listen_port + rank)
            detour = [Reason.REFERRED] if rank else []
            assert [a.reason for a in outcome.attempts] == [*detour, Reason.VERIFIED]
    assert [line for line in lines if line["severity"] == "WARNING"] == []


def test_any_rank_sends_a_client_on_and_any_role_is_found(listen_port: int) -> None:
    with ranks(listen_port, 0, 1) as (first, second):
        assert second.offer(weights(1, "draft"))
        assert eventually(lambda: siblings(first) == [listen_port + 1] * 2, PATIENCE_S)
        assert receive(listen_port + 1, 0)[1]
        into = nn.Linear(64, 64)
        draft = identity(1, role="draft")
        assert fill(into, [Endpoint(HOST, listen_port)], draft, asking()).ok


def test_a_question_is_sent_on_too_and_other_parts_are_left_out(listen_port: int) -> None:
    at, other = Endpoint(HOST, listen_port), Endpoint(HOST, listen_port + 5)
    with ranks(listen_port, 0, 1):
        found = describe([at, other], identity(1), asking())
        assert found.description is not None
        assert found.description.identity == identity(1)
        assert found.sources == (Endpoint(HOST, listen_port + 1), other, at)
        assert found.untried == (other,)
        nobody = describe([at], identity(7), asking())
        assert (nobody.description, nobody.sources) == (None, ())
        assert [a.source for a in nobody.other_parts] == [at]


def test_a_rank_that_the_host_has_not_is_refused_by_field(listen_port: int) -> None:
    with ranks(listen_port, 0, 1):
        outcome, _ = receive(listen_port, 7)
    (attempt,) = outcome.attempts
    assert attempt.reason is Reason.IDENTITY_MISMATCH
    (difference,) = attempt.differences
    assert (difference.field, difference.mine) == ("tensor_parallel", "7 of 10")
    assert "SOURCE must name an instance" in difference.remedy


def test_a_client_waits_for_a_rank_that_is_being_loaded(listen_port: int) -> None:
    with ranks(listen_port, 0) as (first,), contextlib.closing(rank_of(1, listen_port)) as second:
        second.expect(identity(1))
        assert eventually(lambda: siblings(first) == [0], PATIENCE_S)
        (attempt,) = receive(listen_port, 1)[0].attempts
        assert attempt.reason is Reason.NOT_READY
        assert "another rank of this host is loading" in attempt.detail
        second.offer(weights(1))
        patient = replace(FAST, queue_s=PATIENCE_S)
        assert receive(listen_port, 1, deadlines=patient)[1]


def test_a_rank_whose_load_has_failed_is_not_waited_for(listen_port: int) -> None:
    with ranks(listen_port, 0) as (first,), contextlib.closing(rank_of(1, listen_port)) as second:
        second.expect(identity(1))
        assert eventually(lambda: siblings(first) == [0], PATIENCE_S)
        second.forget("target")
        assert eventually(lambda: siblings(first) == [], PATIENCE_S)
        (attempt,) = receive(listen_port, 1)[0].attempts
        assert attempt.reason is Reason.IDENTITY_MISMATCH


def test_the_commands_show_all_ranks(listen_port: int) -> None:
    options = asking_status(PATIENCE_S, token_of(None), None)
    at = f"{HOST}:{listen_port}"
    with ranks(listen_port, 0, 1):
        shown = status(at, options).data["models"]
        assert isinstance(shown, list)
        assert [model["server"] for model in shown] == [at, f"{HOST}:{listen_port + 1}"]
        compared = verify(at, f"{HOST}:{listen_port + 1}", options).data
        assert compared["same"] is True
        models = compared["models"]
        assert isinstance(models, list)
        assert [model["role"] for model in models] == [
            "target, tensor_parallel 0 of 10",
            "target, tensor_parallel 1 of 10",
        ]


# -- who has it ----------------------------------------------------------------------------------


def test_where_there_is_no_rank_0_another_has_the_port_and_a_third_takes_it_over(
    listen_port: int,
) -> None:
    with living(8, listen_port) as first:
        assert eventually(lambda: receive(listen_port, 8)[1], PATIENCE_S)
        with living(9, listen_port):
            assert eventually(lambda: receive(listen_port, 9)[1], PATIENCE_S)
            first.kill()
            killed = monotonic()
            assert eventually(lambda: receive(listen_port, 9)[1], PATIENCE_S)
            assert monotonic() - killed < PATIENCE_S
            (attempt,) = receive(listen_port, 8)[0].attempts
            assert attempt.reason is Reason.IDENTITY_MISMATCH, "the dead are not named"


def test_rank_0_gets_its_port_when_it_comes(listen_port: int) -> None:
    with living(8, listen_port), contextlib.closing(rank_of(0, listen_port)) as own:
        assert eventually(lambda: receive(listen_port, 8)[1], PATIENCE_S)
        own.expect(identity(0))
        assert own.offer(weights(0))
        assert own.server is not None
        assert own.server.endpoint.port == listen_port
        assert receive(listen_port, 0)[1]
        assert receive(listen_port, 8)[1]


def test_a_port_that_a_stranger_has_costs_no_time(listen_port: int) -> None:
    with socket.create_server((HOST, listen_port)), capture() as lines:
        begun = monotonic()
        with contextlib.closing(rank_of(0, listen_port)) as rank:
            assert not rank.offer(weights(0))
        assert monotonic() - begun < PATIENCE_S
    assert "netloader.listener.failed" in [line["event"] for line in lines]


# -- what is no note -----------------------------------------------------------------------------


def note_of(listen_port: int) -> tuple[str, bytes]:
    """Name and content of the only note, once it says where its rank listens."""
    found: list[tuple[str, bytes]] = []

    def says() -> bool:
        with contextlib.suppress(FileNotFoundError):  # its rank has just written another one
            found[:] = [(path.name, path.read_bytes()) for path in users_folder().glob("rank-*")]
        return len(found) == 1 and b'"port":%d' % listen_port in found[0][1]

    assert eventually(says, PATIENCE_S)
    return found[0]


def test_what_is_no_note_is_ignored(listen_port: int, own_folder: Path) -> None:
    with ranks(listen_port, 0) as (first,):
        name, said = note_of(listen_port)
        kind = name[: name.rindex("-") + 1]
        garbage = [HostNotes(kind) for _ in range(4)]
        for notes, data in zip(
            garbage, (b"\xff", b"{}", b'{"host": 1}', b"x" * MOST_NOTE_BYTES), strict=True
        ):
            notes.put(data)
        elsewhere = said.replace(b"127.0.0.1", b"127.0.0.2")
        garbage.append(HostNotes(kind))
        garbage[-1].put(elsewhere)
        (users_folder() / f"{kind}folder").mkdir()
        stale = users_folder() / f"{kind}stale"
        stale.write_bytes(said)
        assert eventually(lambda: not stale.exists(), PATIENCE_S), "it has no writer"
        assert siblings(first) == []
        assert receive(listen_port, 0)[1]
        for notes in garbage:
            notes.take_back()


@pytest.mark.parametrize("spoil", [lambda f: f.chmod(0o777), lambda f: (f.rmdir(), f.touch())])
def test_a_folder_that_others_can_write_to_is_not_used(
    spoil: Callable[[Path], object], listen_port: int
) -> None:
    spoil(users_folder())
    with capture() as lines, contextlib.closing(rank_of(0, listen_port)) as rank:
        assert rank.offer(weights(0))
        assert receive(listen_port, 0)[1]
        assert eventually(lambda: "netloader.instance.failed" in str(lines), PATIENCE_S)
