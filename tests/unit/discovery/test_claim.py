"""Instances that start together: one is the first, and nobody waits longer than for that one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.discovery import claim
from netloader.discovery.base import Candidate, Key, Registry
from netloader.discovery.claim import Claim, wait_for_first
from netloader.discovery.lookup import Looked
from netloader.discovery.urls import registry_of
from netloader.io.clock import monotonic
from netloader.log import capture, get_logger
from tests.support.registries import mute, redis_server
from tests.unit.io.helpers import SOON_S, closed_port, eventually

KEY, LEASE_S = Key("tiny", "all"), 60
SERVER = Endpoint("10.0.0.1", 1)
LOGGER = get_logger("client")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with redis_server() as (where, _):
        yield registry_of(f"redis://{where}/fleet")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "AGAIN_S", 0.02)


def looks_in(registry: Registry) -> Looked:
    found = registry.find(KEY, SOON_S).candidates
    return Looked(tuple(candidate.endpoint for candidate in found))


def waits(registry: Registry, owner: str, wait_s: float = SOON_S) -> tuple[Looked, Claim | None]:
    return wait_for_first(lambda: looks_in(registry), registry, KEY, owner, wait_s, LOGGER)


def owner(registry: Registry) -> str:
    """Who holds the claim; the one who asks where nobody does."""
    return registry.claim(KEY, "nobody", 1, SOON_S)


def test_of_many_that_start_together_one_is_the_first_and_the_others_find_it(
    registry: Registry,
) -> None:
    def start(name: str) -> str:
        looked, held = waits(registry, name)
        if held is None:
            assert looked.sources == (SERVER,)
            return "found"
        registry.put(KEY, Candidate(SERVER), LEASE_S, SOON_S)
        held.lapse()
        return "loaded"

    with ThreadPoolExecutor(8) as threads:
        ends = sorted(threads.map(start, map(str, range(8))))

    assert ends == ["found"] * 7 + ["loaded"]


def test_all_ranks_of_an_instance_are_the_first_together(registry: Registry) -> None:
    held = [waits(registry, "one instance")[1] for _ in range(2)]
    for one in held:
        assert one is not None
        one.release()


def test_a_first_that_gives_up_ends_the_wait_of_all(registry: Registry) -> None:
    _, held = waits(registry, "first")
    assert held is not None
    with capture() as lines, ThreadPoolExecutor(3) as threads:
        others = [threads.submit(waits, registry, name, 6 * SOON_S) for name in "abc"]
        assert eventually(lambda: len(waiting(lines)) == 3)
        held.release()
        ends = [other.result(SOON_S) for other in others]

    assert [looked for looked, _ in ends] == [Looked()] * 3
    next_ones = [then for _, then in ends if then is not None]
    assert len(next_ones) <= 1, "nobody waits for the next one"
    for then in next_ones:
        then.release()


def test_a_first_that_was_killed_is_waited_for_until_its_lease_ends(registry: Registry) -> None:
    registry.claim(KEY, "killed", 1, SOON_S)
    looked, held = waits(registry, "next")
    assert looked == Looked()
    assert held is not None
    held.release()
    assert eventually(lambda: owner(registry) == "nobody")


def test_a_claim_is_renewed_until_it_is_to_lapse(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "RENEW_S", 0.1)
    monkeypatch.setattr(claim, "LEASE_S", 1)
    registry.claim(KEY, "first", 1, SOON_S)
    held = Claim(registry, KEY, "first")
    until = monotonic() + 1.5
    while monotonic() < until:
        assert owner(registry) == "first"
    held.lapse()
    held.release()
    assert owner(registry) == "first", "until its lease ends"
    assert eventually(lambda: owner(registry) == "nobody")


def test_the_wait_ends_in_time(registry: Registry) -> None:
    _, held = waits(registry, "first")
    assert held is not None
    begun = monotonic()
    with capture() as lines:
        assert waits(registry, "other", 0.3) == (Looked(), None)
    assert 0.3 <= monotonic() - begun < 0.3 + SOON_S
    (told,) = waiting(lines)
    assert told["netloader.finder"] == "first"
    assert waits(registry, "hurried", 0.0) == (Looked(), None)
    held.release()


def test_a_server_that_is_there_by_now_is_used_and_the_claim_given_back(
    registry: Registry,
) -> None:
    registry.put(KEY, Candidate(SERVER), LEASE_S, SOON_S)
    assert waits(registry, "late") == (Looked((SERVER,)), None)
    assert eventually(lambda: owner(registry) == "nobody")


def test_a_registry_that_fails_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "ANSWER_S", 0.2)
    with mute() as silent, capture() as lines:
        for where in (closed_port(), silent):
            bad = registry_of(f"redis://{where}")
            begun = monotonic()
            assert wait_for_first(Looked, bad, KEY, "a", SOON_S, LOGGER) == (Looked(), None)
            assert monotonic() - begun < SOON_S
    assert [line["event"] for line in lines] == ["netloader.discovery.failed"] * 2


def waiting(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "netloader.discovery.waiting"]
