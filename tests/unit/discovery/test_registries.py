"""Redis, etcd, Ray: what servers put there, clients find; leases end, and garbage costs a line."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from netloader.config import Endpoint
from netloader.discovery import announce
from netloader.discovery.announce import Announcement
from netloader.discovery.base import (
    MOST_CANDIDATES,
    MOST_OWNER_CHARS,
    Candidate,
    DiscoveryError,
    Found,
    Key,
    Registry,
)
from netloader.discovery.entries import parse, render
from netloader.discovery.http import ask
from netloader.discovery.lookup import Lookup
from netloader.discovery.urls import registry_of
from netloader.io.clock import monotonic
from netloader.log import capture, get_logger
from tests.support.ray_cluster import ray_cluster
from tests.support.registries import Program, etcd_server, mute, redis_server
from tests.unit.io.helpers import SOON_S, closed_port, eventually

KEY = Key("org/tiny", "0123")
A = Candidate(Endpoint("10.0.0.1", 1), "here", 0.5, 2e9)
B = Candidate(Endpoint("fd00::2", 2))
PASSWORD = "hunter2/?#:@"
LONG_S = 60
RAY = "ray://fleet/servers"


@dataclass
class Place:
    """A registry, and how to put bytes there that are no entry."""

    registry: Registry
    litter: Callable[[int, bytes], None]
    program: "Program | None" = None
    """Its server; None for Ray, whose cluster other tests use as well."""

    def found(self) -> list[Candidate]:
        answer = self.registry.find(KEY, SOON_S)
        return sorted(answer.candidates, key=str)

    def endpoints(self) -> set[Endpoint]:
        return {candidate.endpoint for candidate in self.found()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray, in a cluster where the actor of RAY is there: to start its process takes seconds."""
    with ray_cluster() as ray:
        registry_of(RAY).put(Key("another", ""), A, LONG_S, LONG_S)
        yield ray


@pytest.fixture(params=["redis", "etcd", "ray"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "ray":
        ray = request.getfixturevalue("cluster")
        actor = ray.get_actor("servers", "fleet")
        ray.get(actor.__ray_call__.remote(lambda directory: directory.__init__(directory._now)))
        yield Place(registry_of(RAY), in_ray(ray, actor))
        return
    with ExitStack() as stack:
        if request.param == "redis":
            where, program = stack.enter_context(redis_server())
        else:
            where, program = stack.enter_context(etcd_server(tmp_path))
        litter = in_redis(where) if request.param == "redis" else in_etcd(where)
        registry = registry_of(f"{request.param}://{where}/fleet")
        yield Place(registry, litter, program)


def in_ray(ray: Any, actor: Any) -> Callable[[int, bytes], None]:
    def litter(count: int, data: bytes) -> None:
        key = f"{KEY.model}:{KEY.digest}"
        ray.get([actor.put.remote(key, f"n{i}", data, LONG_S) for i in range(count)])

    return litter


def in_redis(where: Endpoint) -> Callable[[int, bytes], None]:
    base = f"fleet:{{{KEY.model}:{KEY.digest}}}"

    def litter(count: int, data: bytes) -> None:
        with redis.Redis(where.host, where.port) as client:
            now = int(client.time()[0])
            names = [f"n{i}" for i in range(count)]
            client.zadd(f"{base}:leases", dict.fromkeys(names, now + LONG_S))
            client.hset(f"{base}:entries", mapping=dict.fromkeys(names, data))

    return litter


def in_etcd(where: Endpoint) -> Callable[[int, bytes], None]:
    def litter(count: int, data: bytes) -> None:
        for begin in range(0, count, 100):
            puts = [
                {
                    "requestPut": {
                        "key": coded(f"fleet/{KEY.model}/{KEY.digest}/n{i}".encode()),
                        "value": coded(data),
                    }
                }
                for i in range(begin, min(begin + 100, count))
            ]
            ask(where, "/v3/kv/txn", SOON_S, {}, document={"success": puts})

    return litter


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_what_servers_put_there_is_found_until_it_is_removed(place: Place) -> None:
    assert place.found() == []
    for candidate in (A, B, A):
        place.registry.put(KEY, candidate, LONG_S, SOON_S)

    assert place.found() == [A, B]
    assert place.registry.find(Key("org/tiny", "other"), SOON_S).candidates == ()
    place.registry.remove(KEY, A.endpoint, SOON_S)
    assert place.found() == [B]


def test_a_server_that_was_killed_is_forgotten_when_its_lease_ends(place: Place) -> None:
    place.registry.put(KEY, A, 1, SOON_S)
    place.registry.put(KEY, B, LONG_S, SOON_S)

    assert eventually(lambda: place.found() == [B])


def test_garbage_is_counted_and_left_out(place: Place) -> None:
    place.registry.put(KEY, A, LONG_S, SOON_S)
    place.litter(20, os.urandom(200) + b"\xff")
    place.litter(1, b"x" * 10_000)

    answer = place.registry.find(KEY, SOON_S)

    assert answer.candidates == (A,)
    assert answer.unreadable == 20


def test_of_thousands_the_newest_are_returned(place: Place) -> None:
    place.litter(2000, render(B))
    place.registry.put(KEY, A, LONG_S + 5, SOON_S)

    answer = place.registry.find(KEY, SOON_S)

    assert len(answer.candidates) == MOST_CANDIDATES
    assert A in answer.candidates


@pytest.mark.parametrize("place", ["redis", "etcd"], indirect=True)
def test_a_registry_that_dies_is_told_and_costs_no_more_than_the_time_out(place: Place) -> None:
    lookup = Lookup([place.registry], KEY, "here", SOON_S, get_logger("client"))
    assert not lookup.look().problems
    assert place.program is not None
    place.program.kill()
    place.program.wait()

    begun = monotonic()
    (problem,) = lookup.look().problems
    assert problem.startswith(f"{place.registry.name}: ")
    assert monotonic() - begun < 2 * SOON_S


def test_an_actor_that_is_gone_for_good_is_created_again(cluster: Any) -> None:
    registry = registry_of("ray://fleet/others")
    assert registry.find(KEY, SOON_S).candidates == ()
    registry.remove(KEY, A.endpoint, SOON_S)
    for _ in range(2):
        registry.put(KEY, A, LONG_S, LONG_S)
        assert registry.find(KEY, SOON_S).candidates == (A,)
        cluster.kill(cluster.get_actor("others", "fleet"))
        assert eventually(lambda: registry.find(KEY, SOON_S).candidates == ())


@pytest.mark.parametrize("scheme", ["redis", "etcd"])
def test_a_registry_that_never_answers_costs_the_time_out(scheme: str) -> None:
    with mute() as silent:
        registry = registry_of(f"{scheme}://{silent}")
        begun = monotonic()
        (problem,) = Lookup([registry], KEY, "", 0.3, get_logger("client")).look().problems
        took = monotonic() - begun

    assert registry.name in problem
    assert 0.29 <= took < 0.3 + SOON_S


@pytest.mark.parametrize("scheme", ["redis", "rediss", "etcd", "etcds"])
def test_a_password_is_used_and_never_shown(scheme: str) -> None:
    coded_ = "hunter2%2F%3F%23%3A%40"
    registry = registry_of(f"{scheme}://:{coded_}@{closed_port()}/x")
    with capture() as lines:
        (problem,) = Lookup([registry], KEY, "", SOON_S, get_logger("client")).look().problems

    for text in (problem, registry.name, repr(registry), repr(vars(registry)), str(lines)):
        assert "hunter2" not in text
    assert "x" in registry.name


def test_redis_takes_the_password_and_says_when_it_is_wrong() -> None:
    with redis_server("--requirepass", PASSWORD) as (where, _):
        good = registry_of(f"redis://:hunter2%2F%3F%23%3A%40@{where}")
        good.put(KEY, A, LONG_S, SOON_S)
        assert good.find(KEY, SOON_S).candidates == (A,)
        with pytest.raises(DiscoveryError, match=r"WRONGPASS|invalid"):
            registry_of(f"redis://:nonsense@{where}").find(KEY, SOON_S)


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"{}",
        b"[]",
        b'{"endpoint": "host.example:1"}',
        b'{"endpoint": "10.0.0.1:0"}',
        b'{"endpoint": 7}',
        b'{"endpoint": "10.0.0.1:1", "load": "x"}',
        b'{"endpoint": "10.0.0.1:1"}' + b" " * 2000,
        b"[" * 1000,
        b"\xff",
    ],
)
def test_what_is_no_entry_cannot_be_read(entry: bytes) -> None:
    assert parse(entry) is None


def test_an_entry_is_read_as_it_was_written() -> None:
    assert parse(render(A)) == A
    assert json.loads(render(B))["endpoint"] == "[fd00::2]:2"


# -- claims --------------------------------------------------------------------------------------

OTHER = Key("org/tiny", "4567")


def claimed(place: Place, owner: str, key: Key = KEY) -> str:
    return place.registry.claim(key, owner, LONG_S, SOON_S)


def test_a_claim_has_one_owner_until_that_one_gives_it_back(place: Place) -> None:
    assert [claimed(place, "a"), claimed(place, "b"), claimed(place, "a")] == ["a", "a", "a"]
    assert claimed(place, "b", OTHER) == "b"

    place.registry.release(KEY, "b", SOON_S)
    assert claimed(place, "b") == "a", "it is not b's to give back"
    place.registry.release(KEY, "a", SOON_S)
    assert claimed(place, "b") == "b"
    assert place.found() == []
    assert place.registry.every(SOON_S) == Found(), "a claim is no server"


def test_a_claim_that_is_not_renewed_ends_with_its_lease(place: Place) -> None:
    place.registry.claim(KEY, "killed", 1, SOON_S)
    begun = monotonic()
    assert eventually(lambda: claimed(place, "next") == "next")
    assert monotonic() - begun > 0.5


def test_an_owner_of_any_length_is_read_in_part(place: Place) -> None:
    claimed(place, "x" * 1000)
    assert claimed(place, "b") == "x" * MOST_OWNER_CHARS


# -- keeping a server there ----------------------------------------------------------------------


def announced(place: Place, offered: Callable[[], Candidate | None]) -> Announcement:
    return Announcement(place.registry, KEY, offered, get_logger("server"))


def test_a_server_is_there_while_it_offers_and_gone_when_it_ends(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "LOOK_S", 0.01)
    now: list[Candidate | None] = [None]
    announcement = announced(place, lambda: now[0])
    try:
        assert place.found() == []
        now[0] = A
        assert eventually(lambda: place.found() == [A])
        now[0] = None
        assert eventually(lambda: place.found() == []), "fenced"
        now[0] = B
        assert eventually(lambda: place.found() == [B])
    finally:
        announcement.end()
    assert place.found() == []


def test_a_lease_is_renewed_with_what_is_true_then(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "LOOK_S", 0.01)
    monkeypatch.setattr(announce, "RENEW_S", 0.05)
    now = [Candidate(A.endpoint, load=0.1)]
    announcement = announced(place, lambda: now[0])
    try:
        assert eventually(lambda: place.found() == now)
        now[0] = Candidate(A.endpoint, load=0.9)
        assert eventually(lambda: place.found() == now)
    finally:
        announcement.end()


def test_a_registry_that_fails_is_one_warning_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announce, "LOOK_S", 0.01)
    monkeypatch.setattr(announce, "RENEW_S", 0.02)
    down = closed_port()
    registry = registry_of(f"redis://{down}")
    with capture() as lines:
        announcement = Announcement(registry, KEY, lambda: A, get_logger("server"))
        try:
            assert eventually(lambda: named(lines, "netloader.publish.failed"))
            with redis_server(port=down.port):
                assert eventually(lambda: registry.find(KEY, SOON_S).candidates == (A,))
                announcement.end()
                assert registry.find(KEY, SOON_S).candidates == ()
        finally:
            announcement.end()

    assert len(named(lines, "netloader.publish.failed")) == 1


def named(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]
