"""What the actor of a Ray registry holds, and who can ask it. test_registries.py has a cluster."""

import sys

import pytest

from netloader.discovery.base import (
    MOST_CANDIDATES,
    MOST_ENTRY_BYTES,
    MOST_OWNER_CHARS,
    DiscoveryError,
    Key,
)
from netloader.discovery.ray_directory import Directory
from netloader.discovery.urls import registry_of
from tests.support.ray_cluster import ray_module

KEY = Key("org/tiny", "0123")


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_entries_are_held_until_their_leases_end_and_the_newest_come_first() -> None:
    clock = Clock()
    directory = Directory(clock)
    directory.put("m:1", "a", b"short", 10)
    directory.put("m:1", "b", b"long", 20)
    directory.put("m:2", "a", b"other", 15)

    assert directory.find("m:1") == [b"long", b"short"]
    assert directory.every() == [b"long", b"other", b"short"]
    clock.now += 10
    assert directory.find("m:1") == [b"long"]
    directory.put("m:1", "a", b"renewed", 30)
    assert directory.find("m:1") == [b"renewed", b"long"]
    directory.remove("m:1", "a")
    directory.remove("m:1", "a")
    assert directory.find("m:1") == [b"long"]
    clock.now += 10
    assert directory.every() == []


def test_no_more_is_sent_than_may_be_read() -> None:
    directory = Directory(Clock())
    for i in range(MOST_CANDIDATES + 1):
        directory.put("m:1", str(i), b"x", 10 + i)
    directory.put("m:1", "large", b"x" * (MOST_ENTRY_BYTES + 1), 10_000)

    found = directory.find("m:1")

    assert len(found) == MOST_CANDIDATES
    assert found[0] == b"", "an entry that is too long counts as one that cannot be read"


def test_a_claim_has_one_owner_until_its_lease_ends_or_it_is_given_back() -> None:
    clock = Clock()
    directory = Directory(clock)

    assert directory.claim("m:1", "a", 10) == "a"
    assert directory.claim("m:2", "b", 10) == "b"
    clock.now += 9
    assert directory.claim("m:1", "a", 10) == "a", "renewed"
    clock.now += 9
    assert directory.claim("m:1", "b", 10) == "a"
    directory.release("m:1", "b")
    assert directory.claim("m:1", "b", 10) == "a", "it is not b's to give back"
    directory.release("m:1", "a")
    assert directory.claim("m:1", "x" * 1000, 10) == "x" * 1000
    assert directory.claim("m:1", "b", 10) == "x" * MOST_OWNER_CHARS
    clock.now += 10
    assert directory.claim("m:1", "b", 10) == "b"
    assert directory.every() == []


def test_a_process_that_is_no_part_of_a_cluster_is_told_so_and_not_connected() -> None:
    with ray_module() as ray:
        assert not ray.is_initialized()
        with pytest.raises(DiscoveryError, match=r"no part of a Ray cluster.*ray\.init"):
            registry_of("ray://fleet/servers").find(KEY, 1.0)
        assert not ray.is_initialized()


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(DiscoveryError, match="needs the package ray"):
        registry_of("ray://fleet/servers").find(KEY, 1.0)


@pytest.mark.parametrize(
    "text",
    ["ray://fleet", "ray://fleet/", "ray://fleet/a/b", "ray://user:secret@h/x", "ray://f/x y"],
)
def test_what_is_no_namespace_and_name_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(ValueError, match="write ray://namespace/actor") as error:
        registry_of(text)
    assert "secret" not in str(error.value)


def test_names_keep_their_case_and_their_underscores() -> None:
    assert registry_of("ray://My_Fleet/Servers-1").name == "ray://My_Fleet/Servers-1"
