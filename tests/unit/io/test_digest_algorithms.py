"""Digest algorithms between real servers and clients: who gets which, and at what cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from netloader.config import Secret
from netloader.fsm.reasons import Reason
from netloader.io import Server, fill
from netloader.io.store import digests
from netloader.log import capture
from tests.unit.io.helpers import FAST as DEADLINES
from tests.unit.io.helpers import IDENTITY, asking, contents, eventually, module_of, random, serving

PATIENT = replace(DEADLINES, queue_s=30)
TOKEN = Secret("0123456789abcdef")
FAST, STRONG = "xxh3_128", "blake3"

pytestmark = pytest.mark.skipif(FAST not in digests.ALGORITHMS, reason="xxhash is not installed")


class Counting:
    """Counts how many segments are hashed with an algorithm."""

    def __init__(self, algorithm: str) -> None:
        self.begun = 0
        self._real = digests.ALGORITHMS[algorithm]

    def __call__(self, threads: int) -> digests.Hasher:
        self.begun += 1
        return self._real(threads)


@contextmanager
def sealed(seed: int = 1, **options: Any) -> Iterator[Server]:
    with serving(module_of(w=random(100_000, seed=seed)), **options) as server:
        assert server.wait_ready(30)
        yield server


@pytest.mark.parametrize(
    ("server_has", "client_has", "token", "used"),
    [
        ("auto", "auto", None, FAST),
        ("auto", "auto", TOKEN, FAST),  # over loopback
        ("auto", STRONG, None, STRONG),
        (STRONG, "auto", None, STRONG),
        (FAST, "auto", None, FAST),
        ("auto", FAST, TOKEN, FAST),
    ],
)
def test_both_sides_use_what_suits_both_and_say_so(
    server_has: str, client_has: str, token: Secret | None, used: str
) -> None:
    target = module_of(w=random(100_000, seed=2))
    with sealed(digest=server_has, token=token) as server, capture() as lines:
        options = asking(digest=client_has, token=token)
        outcome = fill(target, server.endpoint, IDENTITY, options)
        assert eventually(lambda: len(closed(lines)) == 2)

    assert outcome.ok
    assert outcome.digest_algorithm == used
    assert closed(lines) == [used, used]
    assert contents(target) == contents(module_of(w=random(100_000, seed=1)))


def closed(lines: list[dict[str, Any]]) -> list[object]:
    ends = (line for line in lines if line["event"] == "netloader.session.closed")
    return [line["netloader.digest_algorithm"] for line in ends]


def test_sides_without_a_common_algorithm_say_what_each_has() -> None:
    with sealed(digest=STRONG) as server:
        options = asking(digest=FAST)
        (attempt,) = fill(
            module_of(w=random(9, seed=2)), server.endpoint, IDENTITY, options
        ).attempts

    assert attempt.reason is Reason.NOTHING_IN_COMMON
    assert "digest algorithms: server has blake3, client has xxh3_128" in attempt.detail


def test_a_second_set_is_computed_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    with sealed() as server:
        counting = Counting(STRONG)
        monkeypatch.setitem(digests.ALGORITHMS, STRONG, counting)
        for seed in (2, 3):
            target = module_of(w=random(100_000, seed=seed))
            assert fill(target, server.endpoint, IDENTITY, asking(digest=STRONG)).ok

    segments = -(-400_000 // (64 << 10))
    assert counting.begun == 3 * segments  # once by the server, once by each client


def test_weights_that_changed_before_a_second_set_are_published_anew() -> None:
    source, target = module_of(w=random(100_000, seed=1)), module_of(w=random(100_000, seed=2))
    with serving(source) as server, capture() as lines:
        assert server.wait_ready(30)
        source.get_parameter("w").data.numpy().view("uint8")[5] ^= 1  # no version counter sees it
        options = asking(digest=STRONG, deadlines=PATIENT)
        outcome = fill(target, server.endpoint, IDENTITY, options)

    assert outcome.ok
    assert contents(target) == contents(source)
    (told,) = (line for line in lines if line["event"] == "netloader.server.withdrawn")
    assert "changed after they were published, among: w" in told["netloader.detail"]
