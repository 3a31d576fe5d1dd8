"""An instance of two ranks is copied, and served from one port as it was served before."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from netloader.cli.answers import CommandError
from netloader.cli.copying import Copy, Wanted
from netloader.cli.sources import ask
from netloader.config import Endpoint
from netloader.files.folder import FolderFiles, store_of
from netloader.fsm.terms import Sibling
from netloader.io import Server, ServerOptions, fill, listen
from netloader.io.store.cards import CARD
from netloader.io.store.composed import map_in
from netloader.io.store.memory import HostStore
from netloader.io.store.module import ModuleStore
from tests.unit.cli.helpers import COMMAND, Ran, environment, inside, not_served
from tests.unit.io.helpers import (
    FAST,
    KIB,
    asking,
    bytes_of,
    closed_port,
    module_of,
    random,
    sealed,
    serving,
)

RANKS = 2
DRAFT = {"d": torch.full((9,), 7.0)}
FILES = {"config.json": b"{}", "sub/tokenizer.json": b"[1, 2]"}


def weights(rank: int) -> dict[str, Tensor]:
    return {"w": torch.full((300, 200), float(rank)), "norm": torch.ones(7)}


def part(rank: int, role: str = "target", ranks: int = RANKS) -> dict[str, str]:
    return {"model": "inner", "role": role, "tensor_parallel": f"{rank} of {ranks}"}


@contextmanager
def instance(files: dict[str, bytes] = FILES, **options: Any) -> Iterator[list[Server]]:
    """A server for each rank, which knows the other; the first has a draft and files, too."""
    servers: list[Server] = []

    def beside(own: int) -> Callable[[], tuple[Sibling, ...]]:
        others = [rank for rank in range(RANKS) if rank != own]
        return lambda: tuple(Sibling(part(r), servers[r].endpoint.port) for r in others)

    with ExitStack() as stack:
        for rank in range(RANKS):
            given = {"deadlines": FAST, "segment_bytes": 64 * KIB, **options}
            chosen = ServerOptions(siblings=beside(rank), **given)
            servers.append(stack.enter_context(listen(options=chosen)))
            servers[rank].publish(weights(rank), part(rank), {"fact": str(rank)})
        servers[0].publish(DRAFT, part(0, "draft", 1))
        if files:
            offered = FolderFiles(store_of(files), "inner", "public", {})
            servers[0].offer(offered.publish(chosen))
        yield [sealed(server) for server in servers]


def roots(where: str) -> dict[str, str]:
    """What a server and those it names say of each model."""
    told = inside("status", where, "--json").data["models"]
    return {
        f"{each['role']} {each['identity'].get('tensor_parallel')}": each["root"] for each in told
    }


def snapshot(server: Server | Endpoint, out: Path, *words: str) -> Ran:
    where = server.endpoint if isinstance(server, Server) else server
    return inside("snapshot", str(where), "--out", str(out), *words)


@contextmanager
def served(folder: Path, *words: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """`netloader serve` in a process; where it listens, and what reads what it says next."""
    process = subprocess.Popen(
        [*COMMAND, "serve", str(folder), "--json", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        read = process.stdout.readline
        try:
            yield json.loads(read())["endpoint"], lambda: json.loads(read())
        finally:
            process.send_signal(signal.SIGTERM)


def filled(where: str, identity: dict[str, str], like: dict[str, Tensor]) -> dict[str, Tensor]:
    memory = HostStore(ModuleStore([*like.items()]).manifest)
    assert fill(memory, where, identity, asking()).ok
    return memory.tensors()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(bytes_of(one[name]) == bytes_of(other[name]) for name in one)


def test_every_rank_and_role_and_the_files_come_back_from_one_port(tmp_path: Path) -> None:
    out = tmp_path / "kept"
    with instance() as servers:
        before = roots(str(servers[0].endpoint))
        ran = snapshot(servers[1], out)
    assert ran.code == 0, ran.err
    assert "target, tensor_parallel 1 of 2" in ran.out
    assert (out / "sub" / "tokenizer.json").read_bytes() == b"[1, 2]"

    with served(out) as (where, _):
        assert roots(where) == before
        assert len(before) == 4
        for rank in (1, 0):
            assert equal(filled(where, part(rank), weights(rank)), weights(rank))
        assert equal(filled(where, part(0, "draft", 1), DRAFT), DRAFT)
        environment_ = {"NETLOADER_CACHE": str(tmp_path / "cache")}
        words = ("run", where, "--dry-run", "--json", "--", "vllm", "serve")
        started = inside(*words, env=environment_).data
        again = tmp_path / "again"
        assert snapshot(Endpoint.parse(where), again).code == 0
    assert "--served-model-name=public" in started["command"]
    assert [*started["files"]] == [*FILES]
    cards = [sorted(folder.glob(f"*/{CARD}")) for folder in (out, again)]
    assert len(cards[0]) == len(cards[1]) == 3


def test_a_byte_that_changed_on_the_disk_never_counts_as_verified(tmp_path: Path) -> None:
    out = tmp_path / "kept"
    with instance(files={}) as servers:
        assert snapshot(servers[0], out).code == 0
    file = out / "00-target" / "model.safetensors"
    with file.open("r+b") as data:
        data.seek(-5, os.SEEK_END)
        data.write(b"\x55")

    refused = not_served(str(out), "--verify")
    with served(out) as (where, said):
        memory = HostStore(ModuleStore([*weights(0).items()]).manifest)
        outcome = fill(memory, where, part(0), asking())
        assert not outcome.ok
        assert outcome.attempts[0].reason.value == "digest_mismatch"
        events = [said(), said()]
        assert equal(filled(where, part(1), weights(1)), weights(1))
    assert refused.code == 5
    assert "weights were changed after they were published, among: " in refused.err
    assert {event["event"] for event in events} == {"session", "withdrawn"}


def damaged(card: dict[str, Any]) -> None:
    card["segment_digests"][0] = "0" * 32


def of_others(card: dict[str, Any]) -> None:
    card["status"]["segment_bytes"] *= 2


@pytest.mark.parametrize(
    ("change", "says"), [(damaged, "is damaged: its digests"), (of_others, "of other segments")]
)
def test_a_card_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    out = tmp_path / "kept"
    with instance(files={}) as servers:
        assert snapshot(servers[0], out).code == 0
    path = out / "00-target" / CARD
    card = json.loads(path.read_bytes())
    change(card)
    path.write_text(json.dumps(card))
    ran = not_served(str(out))
    assert (ran.code, says in ran.err) == (5, True), ran.err


def test_two_models_that_clients_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "kept"
    with instance(files={}) as servers:
        assert snapshot(servers[0], out).code == 0
    shutil.copytree(out / "00-target", out / "09-other")
    ran = not_served(str(out))
    assert (ran.code, "hold the same part of a model" in ran.err) == (5, True), ran.err


def test_what_cannot_be_copied_whole_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "new"
    with instance({"config.json": b"{}", "model.py": b"code"}) as servers:
        code = snapshot(servers[0], out)
        layout = snapshot(servers[0], out, "--layout", "processed")
        servers[1].close()
        half = snapshot(servers[0], out)
    taken = snapshot(closed_port(), tmp_path)
    assert (code.code, "give --trust" in code.err) == (5, True)
    assert (layout.code, "has the layout raw, and not processed" in layout.err) == (4, True)
    assert (half.code, "unreachable" in half.err) == (3, True)
    assert taken.code == 3
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - hidden ones too


def test_a_rank_that_no_source_has_is_named(tmp_path: Path) -> None:
    with listen(options=ServerOptions(deadlines=FAST)) as server:
        server.publish(weights(1), part(1))
        ran = snapshot(sealed(server), tmp_path / "new")
    assert ran.code == 4
    assert "no source has tensor_parallel 0 of 2" in ran.err


def test_weights_that_change_while_they_are_copied_are_not_kept(tmp_path: Path) -> None:
    module = module_of(w=random(1000, seed=1))
    with serving(module) as server:
        told = ask(sealed(server).endpoint, {}, asking())
        with server.fence(None, "a new checkpoint"):
            module.get_parameter("w").fill_(2)
        sealed(server)
        copying = Copy(Wanted(told, [server.endpoint], tmp_path / "new"))
        with closing(copying), pytest.raises(CommandError, match="were changed meanwhile: root"):
            copying.run(asking(), "", "")


# -- maps of a checkpoint --------------------------------------------------------------------------

WIDE, ROWS = 256, 320
"""Of the tensors of a checkpoint, in elements."""


def checkpoint(folder: Path) -> dict[str, Tensor]:
    """A folder as a hub has it."""
    folder.mkdir()
    every = {f"{name}_proj": random(ROWS, WIDE, seed=i) for i, name in enumerate(("q", "k", "o"))}
    every["norm"] = random(WIDE, seed=9)
    save_file(every, folder / "model.safetensors")
    return every


def cut(whole: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """What an engine makes of it for one of two ranks."""
    rows, columns = (slice(rank * n // 2, (rank + 1) * n // 2) for n in (ROWS, WIDE))
    return {
        "qk_proj": torch.cat([whole["q_proj"][rows], whole["k_proj"][rows]]),
        "o_proj": whole["o_proj"][:, columns].contiguous(),
        "turned": whole["o_proj"][rows].t().contiguous(),
        "padded": torch.cat([whole["k_proj"], random(64, WIDE, seed=20 + rank)]),
        "norm": whole["norm"],
    }


@contextmanager
def ranks_of(whole: dict[str, Tensor]) -> Iterator[Server]:
    """One server with both ranks."""
    with listen(options=ServerOptions(deadlines=FAST, segment_bytes=64 * KIB)) as server:
        for rank in range(RANKS):
            server.publish(cut(whole, rank), part(rank))
        yield sealed(server)


def test_a_map_needs_no_bytes_that_the_checkpoint_has(tmp_path: Path) -> None:
    whole, out = checkpoint(tmp_path / "hub"), tmp_path / "kept"
    with ranks_of(whole) as server:
        where = str(server.endpoint)
        before = roots(where)
        ran = snapshot(server, out, "--checkpoint", str(tmp_path / "hub"), "--json")
    rank_map = map_in(out / "00-target")
    assert rank_map is not None
    counts = {name: len(pieces) for name, pieces in rank_map.tensors.items()}
    assert counts == {"qk_proj": 2, "o_proj": 1, "turned": 1, "padded": 2, "norm": 1}
    (tmp_path / "hub").rename(tmp_path / "moved")
    gone = not_served(str(out))
    with served(out, "--checkpoint", str(tmp_path / "moved"), "--verify") as (where, _):
        assert roots(where) == before
        for rank in range(RANKS):
            assert equal(filled(where, part(rank), cut(whole, rank)), cut(whole, rank))

    assert ran.code == 0, ran.err
    turned, padding, norm = ROWS * WIDE // 2 * 4, 64 * WIDE * 4, WIDE * 4
    assert [each["kept_bytes"] for each in ran.data["parts"]] == [turned + padding + norm] * 2
    assert (gone.code, "hub is no folder" in gone.err) == (5, True)


def test_another_checkpoint_is_not_what_was_copied(tmp_path: Path) -> None:
    whole, out = checkpoint(tmp_path / "hub"), tmp_path / "kept"
    with ranks_of(whole) as server:
        assert snapshot(server, out, "--checkpoint", str(tmp_path / "hub")).code == 0
    save_file({**whole, "k_proj": whole["q_proj"].clone()}, tmp_path / "hub" / "model.safetensors")
    ran = not_served(str(out), "--verify")
    assert ran.code == 5
    assert "weights were changed after they were published, among: qk_proj" in ran.err

    save_file(
        {**whole, "k_proj": whole["q_proj"][:9].clone()}, tmp_path / "hub" / "model.safetensors"
    )
    assert "k_proj has 9216 bytes, but qk_proj" in not_served(str(out)).err


def test_a_map_that_composes_other_bytes_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows have one hash: a collision, as if there were no tensor like another."""
    monkeypatch.setattr(
        "netloader.io.store.matching._hashes",
        lambda block, width: torch.zeros(len(block) // width, dtype=torch.int64),
    )
    whole, out = checkpoint(tmp_path / "hub"), tmp_path / "kept"
    with ranks_of(whole) as server:
        ran = snapshot(server, out, "--checkpoint", str(tmp_path / "hub"))
    assert ran.code == 5
    assert "was not written" in ran.err
    assert not out.exists()
