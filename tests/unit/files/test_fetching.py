"""Files from real servers into the cache: complete, or not at all."""

import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.config import Endpoint, Secret
from netloader.files.cache import cache_root, keep
from netloader.files.fetching import Fetched, UnansweredError, fetch
from netloader.files.folder import SERVED_NAME, FolderFiles, store_of
from netloader.files.rules import DATA, WITH_CODE, FilesError, Rules, spec_of
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description, Hello, Purpose
from netloader.fsm.reasons import Reason
from netloader.io import Server, listen
from netloader.io.publishing import ServerOptions
from tests.support.relay import Fault, Relay
from tests.support.threads import at_once
from tests.unit.io.helpers import FAST, Peer, asking, closed_port, pretending, serving

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": bytes(range(256)) * 900,
    "1_Pooling/config.json": b"{}",
    "added.txt": b"",
}
IDENTITY = {"role": "files", "model": "tiny"}


@contextmanager
def offering(
    contents: Mapping[str, bytes] = FILES, served: str = "served", **options: Any
) -> Iterator[Server]:
    """A server of weights that offers files, too."""
    chosen = ServerOptions(**{"deadlines": FAST, **options})
    files = FolderFiles(store_of(contents), "tiny", served, {})
    with listen(options=chosen) as server:
        server.publish({"w": torch.ones(9)}, {"model": "tiny", "role": "target"})
        server.offer(files.publish(chosen))
        yield server


def fetched(root: Path, *sources: Endpoint, rules: Rules = DATA, **options: Any) -> Fetched:
    return fetch(sources, asking(**options), rules, root)


def written(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(root: Path, *sources: Endpoint, **options: Any) -> str:
    """Why nothing was fetched; nothing was written either."""
    with pytest.raises(FilesError) as caught:
        fetched(root, *sources, **options)
    assert not root.exists() or list(root.iterdir()) == []
    return str(caught.value)


def test_all_files_arrive_under_their_names_and_only_the_owner_may_read_them(
    tmp_path: Path,
) -> None:
    with offering() as server:
        got = fetched(tmp_path / "cache", server.endpoint)
        again = fetched(tmp_path / "cache", server.endpoint)
    assert written(got.folder) == FILES
    assert (got.model, got.served_name, got.source) == ("tiny", "served", server.endpoint)
    assert (got.nbytes, {*got.names}) == (sum(map(len, FILES.values())), {*FILES})
    assert again.folder == got.folder
    assert [*got.folder.parent.iterdir()] == [got.folder]
    assert stat.S_IMODE(got.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((got.folder / "config.json").stat().st_mode) == 0o400


def test_other_content_is_another_folder(tmp_path: Path) -> None:
    with offering() as one, offering({**FILES, "config.json": b"{}"}) as other:
        first = fetched(tmp_path, one.endpoint)
        second = fetched(tmp_path, other.endpoint)
    assert first.folder != second.folder
    assert written(first.folder) == FILES


def test_a_folder_that_was_changed_is_refused_and_not_written_to(tmp_path: Path) -> None:
    with offering() as server:
        folder = fetched(tmp_path, server.endpoint).folder
        for spoil, what in (
            (lambda: (folder / "more.json").write_text("{}"), "more.json"),
            (lambda: (folder / "config.json").write_bytes(b"x" * 23), "config.json"),
            (lambda: (folder / "config.json").unlink(), "config.json"),
        ):
            (folder / "config.json").chmod(0o600)
            spoil()
            before = written(folder)
            with pytest.raises(FilesError) as caught:
                fetched(tmp_path, server.endpoint)
            assert f"{folder} holds something else than was received, {what}" in str(caught.value)
            assert written(folder) == before
            (folder / "more.json").unlink(missing_ok=True)


def test_a_link_in_the_folder_is_no_file(tmp_path: Path) -> None:
    folder = keep({"config.json": b"{}"}, tmp_path / "cache")
    outside = tmp_path / "outside.json"
    outside.write_bytes(b"{}")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(outside)
    with pytest.raises(FilesError, match=r"config\.json"):
        keep({"config.json": b"{}"}, tmp_path / "cache")


def test_two_that_fetch_at_once_have_one_folder(tmp_path: Path) -> None:
    found = at_once(lambda: keep(FILES, tmp_path))
    assert len(found) == 4
    assert len({*found}) == 1
    assert [*tmp_path.iterdir()] == found[:1]


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"../../climbed.json": b"{}"}, "'../../climbed.json' of the source has no path"),
        ({"/etc/absolute.json": b"{}"}, "'/etc/absolute.json' of the source has no path"),
        ({"config.json": b"{}", "CONFIG.json": b"{}"}, "one file on some file systems"),
        ({"modeling.py": b"boom"}, "'modeling.py' of the source is code; give --trust"),
        ({"model.pkl": b"boom"}, "'model.pkl' of the source is of no kind"),
    ],
)
def test_what_a_source_must_not_send_is_named_and_nothing_is_written(
    tmp_path: Path, contents: dict[str, bytes], words: str
) -> None:
    with offering(contents) as server:
        assert words in refused(tmp_path / "cache", server.endpoint)
    assert [*tmp_path.rglob("*")] in ([], [tmp_path / "cache"])


def test_ten_gigabytes_of_config_are_refused_without_a_byte_of_them(tmp_path: Path) -> None:
    heard: list[object] = []

    def boast(peer: Peer) -> None:
        heard.append(peer.hear())
        huge = Manifest((spec_of("config.json", 10 << 30),))
        peer.say(Description(Identity(IDENTITY), manifest=huge))

    with pretending(boast) as endpoint:
        said = refused(tmp_path, endpoint)
    assert "'config.json' of the source has 10737418240 bytes; at most 134217728" in said
    (hello,) = heard
    assert isinstance(hello, Hello)
    assert hello.purpose is Purpose.STATUS


def test_code_is_fetched_with_trust(tmp_path: Path) -> None:
    with offering({"config.json": b"{}", "modeling.py": b"pass"}) as server:
        got = fetched(tmp_path, server.endpoint, rules=WITH_CODE)
    assert written(got.folder)["modeling.py"] == b"pass"


def test_a_changed_byte_is_noticed_and_nothing_is_written(tmp_path: Path) -> None:
    with offering() as server, Relay(server.endpoint, Fault.GARBLE, 7) as wire:
        assert "digest_mismatch" in refused(tmp_path, wire.endpoint)


def test_the_next_source_delivers_what_the_first_does_not(tmp_path: Path) -> None:
    with offering() as server, Relay(server.endpoint, Fault.GARBLE, 7) as wire:
        got = fetched(tmp_path, closed_port(), wire.endpoint, server.endpoint)
    assert got.source == server.endpoint
    assert written(got.folder) == FILES


def test_who_has_no_token_gets_no_file(tmp_path: Path) -> None:
    token = Secret("sixteen characters and more")
    with offering(token=token) as server:
        assert "auth_required" in refused(tmp_path, server.endpoint)
        assert written(fetched(tmp_path, server.endpoint, token=token).folder) == FILES


def test_a_server_without_files_and_one_that_is_not_there_are_told_apart(tmp_path: Path) -> None:
    for role in ({}, {"role": "target"}):
        with serving({"w": torch.ones(9)}, {"model": "tiny", **role}) as server:
            said = refused(tmp_path, server.endpoint)
        assert f"{server.endpoint} offers no files of its model's folder; start it with" in said
    with pytest.raises(UnansweredError) as caught:
        fetched(tmp_path, closed_port())
    assert caught.value.attempt.reason is Reason.UNREACHABLE
    with pytest.raises(FilesError, match="no source is named"):
        fetched(tmp_path)


@pytest.mark.parametrize("name", ["", "two\nlines", "\x1b[2J", "x" * 513])
def test_a_name_that_cannot_be_an_argument_is_refused(tmp_path: Path, name: str) -> None:
    files = store_of(FILES)
    facts = {SERVED_NAME: name}
    identity = {**IDENTITY, "model": name} if not name else IDENTITY
    with serving(files, identity, facts=facts) as server:
        said = refused(tmp_path, server.endpoint)
    assert "calls its model" in said
    assert said.isprintable()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with offering() as server, pytest.raises(FilesError, match="file/cache cannot be used: Not a"):
        fetched(tmp_path / "file" / "cache", server.endpoint)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_root({}) == Path("/home/me/.cache/netloader/files")
    assert cache_root({"XDG_CACHE_HOME": "/c"}) == Path("/c/netloader/files")
    both = {"XDG_CACHE_HOME": "/c", "NETLOADER_CACHE": "/mine"}
    assert cache_root(both) == Path("/mine/files")
