"""Sources that a DNS server or files name: all of them, and what changes is seen."""

import os
from pathlib import Path

import pytest

from netloader.config import Endpoint
from netloader.discovery.base import DiscoveryError, Found, Key
from netloader.discovery.files import Files
from netloader.discovery.urls import finder_of
from tests.support.registries import name_server
from tests.unit.io.helpers import SOON_S, eventually

KEY = Key("tiny", "0123")


def found(text: str, rank: int = 0) -> list[str]:
    answer: Found = finder_of(text, rank).find(KEY, SOON_S)
    assert not answer.unreadable
    return sorted(str(candidate.endpoint) for candidate in answer.candidates)


def test_every_address_of_a_name_is_a_source_and_the_name_is_asked_again(tmp_path: Path) -> None:
    with name_server(tmp_path, {}) as hosts:
        hosts.write_text("10.0.0.1 servers.test\n10.0.0.2 servers.test\nfd00::3 servers.test\n")
        expected = ["10.0.0.1:7", "10.0.0.2:7", "[fd00::3]:7"]
        assert eventually(lambda: found("servers.test:7") == expected)
        assert found("servers.test:7", rank=2) == expected
        hosts.write_text("10.0.0.9 servers.test\n")
        assert eventually(lambda: "10.0.0.9:7" in found("servers.test:7"))
        assert found("nobody.test:7") == []


def test_the_targets_of_an_srv_record_are_sources(tmp_path: Path) -> None:
    with name_server(tmp_path, {"a.test": 100, "b.test": 200}) as hosts:
        hosts.write_text("10.0.0.1 a.test\n10.0.0.2 b.test\n")
        record = "srv+_netloader._tcp.test"
        expected = ["10.0.0.1:100", "10.0.0.2:200"]
        assert eventually(lambda: found(record) == expected)
        assert found(record, rank=1) == expected
        assert found("srv+_nobody._tcp.test") == []


def test_a_name_that_cannot_be_looked_up_is_a_problem_and_not_nobody() -> None:
    with pytest.raises(DiscoveryError, match="no host name"):
        finder_of(f"{'a' * 64}.test:7", 0).find(KEY, SOON_S)


def test_files_are_read_at_each_look_for_the_own_rank_only(tmp_path: Path) -> None:
    for name, text in {"a-0": "10.0.0.1:5", "b-0": "[::1]:6\n", "b-1": "10.0.0.2:7"}.items():
        (tmp_path / f"{name}.txt").write_text(text)

    pattern = f"file:{tmp_path}/*-{{RANK}}.txt"
    assert found(pattern) == ["10.0.0.1:5", "[::1]:6"]
    assert found(pattern, rank=1) == ["10.0.0.2:7"]
    (tmp_path / "a-0.txt").unlink()
    assert found(pattern) == ["[::1]:6"]
    assert found(f"file:{tmp_path}/none/*") == []


def test_files_that_hold_something_else_are_counted_and_none_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("10.0.0.1:5")
    (tmp_path / "garbage").write_bytes(os.urandom(3000))
    (tmp_path / "a name").write_text("host.example:5")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")

    files = Files(f"{tmp_path}/*")
    answer = files.find(KEY, SOON_S)

    assert [c.endpoint for c in answer.candidates] == [Endpoint("10.0.0.1", 5)]
    assert answer.unreadable == 3
    assert files.folders() == (tmp_path / "folder",), "a source of another kind"


@pytest.mark.parametrize(
    "text",
    [
        "redi://:hunter2@h:1/x",
        "user:hunter2@h:1",
        "https://hunter2",
        "srv+",
        "file: ",
        "hunter2",
        "h:hunter2",
    ],
)
def test_what_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write host:port|followed by nothing") as raised:
        finder_of(text, 0)

    assert "@" not in text or "hunter2" not in str(raised.value)
