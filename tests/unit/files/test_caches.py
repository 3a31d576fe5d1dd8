"""Compiled code and hints from real servers: under equal conditions, proven, or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.config import Endpoint, Secret
from netloader.files.caches import COMPILED, compiled_in, take_compiled
from netloader.files.fingerprint import cpu_flags, of_machine
from netloader.files.folder import published, store_of
from netloader.files.hints import (
    KV_SIZE,
    KvSize,
    hints_identity,
    kv_size_in,
    place_inspections,
    publish_hints,
    take_hints,
    vllm_root,
)
from netloader.files.rules import FilesError, Rules, spec_of
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description
from netloader.io import Server, listen
from netloader.io.publishing import ServerOptions
from netloader.io.store.memory import HostStore
from tests.support.relay import Fault, Relay
from tests.unit.files.test_placing import files, tree
from tests.unit.io.helpers import FAST, Peer, asking, closed_port, pretending

TOKEN = Secret("sixteen characters and more")
KEY = "inductor"
CODE = {
    f"{KEY}/ab/cabc.main.so": bytes(range(256)) * 300,
    f"{KEY}/ab/cabc.main.cpp": b"int main() {}",
    f"{KEY}/aotautograd/a5i74/6nsp": b"a pickle",
    f"{KEY}/rank_0_0/model": b"ahead of time",
}
MINE = Identity({"role": "caches", "model": "tiny", **of_machine()})
OTHER_FLAGS = " ".join([*(f for f in MINE.hard["cpu_flags"].split() if f != "fpu"), "amx_tile"])


@contextmanager
def offering(
    contents: Mapping[str, bytes] = CODE, identity: Identity = MINE, **options: Any
) -> Iterator[Server]:
    """A server of weights that offers compiled code, too."""
    chosen = ServerOptions(**{"deadlines": FAST, "token": TOKEN, **options})
    with listen(options=chosen) as server:
        server.publish({"w": torch.ones(9)}, {"model": "tiny", "role": "target"})
        server.offer(published(store_of(contents), identity, chosen))
        yield server


def taken(root: Path, *sources: Endpoint, **options: Any) -> tuple[str, ...]:
    chosen = asking(**{"token": TOKEN, **options})
    return take_compiled(sources, MINE, {KEY: root / "torch" / "own-key"}, root, chosen)


def refused(root: Path, *sources: Endpoint, **options: Any) -> str:
    """Why nothing was taken; nothing was written either."""
    before = tree(root)
    with pytest.raises(FilesError) as caught:
        taken(root, *sources, **options)
    assert tree(root) == before
    return str(caught.value)


def changed(name: str, value: str) -> Identity:
    return replace(MINE, hard={**MINE.hard, name: value})


def test_code_arrives_under_the_name_that_this_side_looks_for(tmp_path: Path) -> None:
    with offering() as server:
        placed = taken(tmp_path, server.endpoint)
        again = taken(tmp_path, server.endpoint)
    under = {name.replace(KEY, "torch/own-key", 1): content for name, content in CODE.items()}
    assert files(tmp_path) == under
    assert {*placed} == {*under}
    assert again == ()


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "torch" / "own-key" / "rank_0_0" / "model"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own")
    with offering() as server:
        assert "torch/own-key/rank_0_0/model" not in taken(tmp_path, server.endpoint)
    assert mine.read_bytes() == b"my own"


@pytest.mark.parametrize(
    ("name", "theirs", "words"),
    [
        ("vllm", "9.9.9", f"vllm: mine is '{MINE.hard['vllm']}', theirs is '9.9.9'"),
        ("torch", "9.9", "torch: mine is"),
        ("python", "CPython 3.99", "python: mine is"),
        ("caches_format", "99", "caches_format: mine is '1', theirs is '99'"),
        ("cpu_flags", OTHER_FLAGS, "cpu_flags: mine is 'fpu', theirs is 'amx_tile'"),
        ("vllm.cache_config", "0123", "vllm.cache_config: mine is '(absent)', theirs is '0123'"),
    ],
    ids=lambda value: str(value).partition(" ")[0],
)
def test_what_was_made_elsewhere_is_refused_with_both_values(
    tmp_path: Path, name: str, theirs: str, words: str
) -> None:
    assert "fpu" in MINE.hard["cpu_flags"].split() or name != "cpu_flags"
    with offering(identity=changed(name, theirs)) as server:
        said = refused(tmp_path, server.endpoint)
    assert said.startswith("the caches of the source fit other conditions: ")
    assert words in said


def test_code_of_a_source_that_is_not_proven_is_not_asked_for(tmp_path: Path) -> None:
    with offering(token=None) as server:
        said = refused(tmp_path, server.endpoint, token=None)
    assert "nothing proves who sends it; set AUTH_TOKEN_FILE, or TLS_CERT" in said
    with offering(token=None) as server:
        assert refused(tmp_path, server.endpoint)  # it does not know the token
    with offering(token=Secret("another of sixteen characters")) as server:
        assert "auth_failed" in refused(tmp_path, server.endpoint)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{KEY}/../../../../../climbed.so", "has no path that is taken"),
        ("/etc/absolute.so", "has no path that is taken"),
        (f"{KEY}/.hidden", "has no path that is taken"),
        (f"{KEY}/{'a/' * 11}b", "at most 12 parts"),
        (f"{KEY}/ab", "cannot be a file and a folder"),
    ],
)
def test_a_name_that_leads_elsewhere_is_named(tmp_path: Path, name: str, words: str) -> None:
    with offering({**CODE, name: b"x"}) as server:
        assert words in refused(tmp_path, server.endpoint)


def test_ten_gigabytes_are_refused_without_a_byte_of_them() -> None:
    def boast(peer: Peer) -> None:
        peer.hear()
        huge = Manifest((spec_of(KV_SIZE, 10 << 30),))
        peer.say(Description(hints_identity("tiny"), manifest=huge))

    with pretending(boast) as endpoint, pytest.raises(FilesError) as caught:
        take_hints([endpoint], "tiny", asking())
    assert f"'{KV_SIZE}' of the source has 10737418240 bytes; at most 65536" in str(caught.value)
    assert "has 10737418240 bytes; at most 268435456" in COMPILED.flaw("a/b.so", 10 << 30)


def test_a_changed_byte_is_noticed_and_nothing_is_written(tmp_path: Path) -> None:
    with offering() as server, Relay(server.endpoint, Fault.GARBLE, 7) as wire:
        assert refused(tmp_path, wire.endpoint)


def test_keys_that_only_the_source_has_are_left_out(tmp_path: Path) -> None:
    with offering({**CODE, "other/x.so": b"x"}) as server:
        assert all("x.so" not in name for name in taken(tmp_path, server.endpoint))
    with offering({"other/x.so": b"x"}) as server:
        assert "nothing that the source compiled is what" in refused(
            tmp_path / "new", server.endpoint
        )


def test_a_source_that_offers_none_says_what_would_help(tmp_path: Path) -> None:
    chosen = ServerOptions(deadlines=FAST, token=TOKEN)
    with listen(options=chosen) as server:
        server.publish({"w": torch.ones(9)}, {"model": "tiny", "role": "target"})
        assert "offers no compiled code; set CACHES there" in refused(tmp_path, server.endpoint)
    assert "unreachable" in refused(tmp_path, closed_port())


# -- the side that has it ----------------------------------------------------------------------


def compiled(folder: Path) -> Path:
    """A compiler's cache with CODE in it."""
    for name, content in CODE.items():
        path = folder / name.partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def held(store: HostStore) -> dict[str, bytes]:
    return {name: bytes(tensor.numpy()) for name, tensor in store.tensors().items()}


def test_what_a_compiler_wrote_is_copied_without_locks_links_and_other_ranks(
    tmp_path: Path,
) -> None:
    folder = compiled(tmp_path / "own")
    for name in ("locks/x.lock", "rank_1_0/model", ".hidden/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("left out")
    (folder / "ab" / "link.so").symlink_to("/etc/passwd")
    os.mkfifo(folder / "ab" / "pipe")
    before = tree(tmp_path)
    store, left_out = compiled_in({KEY: folder}, lambda name: name == "rank_1_0")
    assert tree(tmp_path) == before, "the copy has no name"
    (folder / "ab" / "cabc.main.so").write_bytes(b"changed later")
    assert held(store) == CODE
    assert list(left_out) == [f"{KEY}/.hidden/x"]


def test_a_file_that_changes_or_is_removed_meanwhile_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, choose = compiled(tmp_path), Rules.chosen
    (folder / "temporary").touch()

    def listing(_: str) -> bool:
        (folder / "temporary").unlink(missing_ok=True)
        return False

    def choosing(*of: Any) -> Any:
        (folder / "ab" / "cabc.main.so").write_bytes(b"x" * 99_999)
        (folder / "ab" / "cabc.main.cpp").unlink()
        return choose(*of)

    monkeypatch.setattr(Rules, "chosen", choosing)
    store, left_out = compiled_in({KEY: folder}, listing)
    changes = {
        f"{KEY}/ab/cabc.main.so": "cannot be read: it is being written to",
        f"{KEY}/ab/cabc.main.cpp": "cannot be read: No such file or directory",
    }
    assert left_out == changes
    assert held(store) == {name: CODE[name] for name in CODE if name not in changes}


def test_nothing_compiled_is_said(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="nothing was compiled that another instance could use"):
        compiled_in({KEY: tmp_path / "missing"}, lambda _: False)


# -- hints -------------------------------------------------------------------------------------

SIZE = KvSize(20 << 30, 23 << 30, 1 << 30, {"max_model_len": "512"})
HINTS = {"modelinfos/vllm-llama-Llama.json": b'{"hash": "1"}', KV_SIZE: SIZE.render()}


@contextmanager
def hinting(contents: Mapping[str, bytes], model: str = "tiny") -> Iterator[Server]:
    chosen = ServerOptions(deadlines=FAST)
    with listen(options=chosen) as server:
        server.offer(publish_hints(contents, model, chosen))
        yield server


def test_hints_need_no_proof_and_what_vllm_reads_goes_where_it_looks(tmp_path: Path) -> None:
    with hinting(HINTS) as server:
        hints = take_hints([server.endpoint], "tiny", asking())
    assert kv_size_in(hints) == SIZE
    assert place_inspections(hints, tmp_path) == ("modelinfos/vllm-llama-Llama.json",)
    assert files(tmp_path) == {"modelinfos/vllm-llama-Llama.json": b'{"hash": "1"}'}
    assert kv_size_in({}) is None


def test_hints_of_another_model_or_version_are_refused() -> None:
    with hinting(HINTS, "other") as server, pytest.raises(FilesError, match="model: mine is 'ti"):
        take_hints([server.endpoint], "tiny", asking())
    assert hints_identity("tiny").hard["vllm"] == MINE.hard["vllm"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("modelinfos/x.json", b"[]", "'modelinfos/x.json' of the source is no JSON object"),
        ("modelinfos/x.json", b"{", "is no JSON: "),
        ("modelinfos/x.py", b"{}", "is code"),
        ("modelinfos/x.json", b"{}" * (1 << 15), "has 65536 bytes"),
        ("a/b/c.json", b"{}", "at most 2 parts"),
    ],
)
def test_what_is_no_hint_is_named(name: str, content: bytes, words: str) -> None:
    if len(content) == 1 << 16:
        content += b" "
        words = "has 65537 bytes; at most 65536"
    with hinting({name: content}) as server, pytest.raises(FilesError) as caught:
        take_hints([server.endpoint], "tiny", asking())
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"kv_cache_bytes": 0},
        {"free_bytes": -1},
        {"taken_bytes": -1},
        {"kv_cache_bytes": 1.5},
        {"of": {"a": 1}},
        {"of": []},
    ],
)
def test_what_is_no_size_is_refused(told: dict[str, object]) -> None:
    good = {"kv_cache_bytes": 1, "free_bytes": 1, "taken_bytes": 0, "of": {}} if told else {}
    with pytest.raises(FilesError, match="names no size and its conditions"):
        kv_size_in({KV_SIZE: json.dumps({**good, **told}).encode()})


def test_where_vllm_keeps_its_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert vllm_root({}) == Path("/home/me/.cache/vllm")
    assert vllm_root({"XDG_CACHE_HOME": "/c"}) == Path("/c/vllm")
    assert vllm_root({"XDG_CACHE_HOME": "/c", "VLLM_CACHE_ROOT": "~/v"}) == Path("/home/me/v")


def test_the_instruction_sets_are_the_kernels_in_order(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: sse fpu avx2\nprocessor : 1\nflags : x\n")
    assert cpu_flags(cpuinfo) == "avx2 fpu sse"
    cpuinfo.write_text("Features\t: neon asimd\n")
    assert cpu_flags(cpuinfo) == "asimd neon"
