"""What a hostile peer costs grows with what it sends, and no faster: in time, in memory, in answer.

Each idea is tried in one size and in one eight times as large. Work that is proportional to what
was sent takes eight times as long then, quadratic work sixty-four times.
"""

import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from netloader.fsm.manifest import TensorSpec
from netloader.fsm.messages import Message
from tests.fuzz.conversation import Conversation
from tests.support.messages import MANIFEST, OFFER, SECURED, hello

TIMES: Final = 8
NOT_QUADRATIC: Final = 30
"""Between 8 and 64, and far from both: other work shares the machine."""
TRIES: Final = 3
TOO_SHORT_S: Final = 0.002
"""A shorter time says nothing about how it grows."""
MOST_FOR_A_BYTE: Final = 30
"""Bytes of memory for each byte of a frame, at the worst moment. Reading `"a":"",` into a mapping
takes 13; a frame may have 64 MiB."""
OWN_BYTES: Final = 200_000
"""Memory of a session and of this test, whatever is sent."""


class Idea(NamedTuple):
    """Something an attacker may send: to whom, and the lines for a size."""

    life: str
    lines: Callable[[int], list[tuple[str, Any]]]
    size: int


@pytest.fixture(autouse=True, scope="module")
def nothing_else_to_collect() -> Iterator[None]:
    """What was imported before (torch, say) is no cost of a message."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def fields(message: Message, **other: object) -> dict[str, Any]:
    """The body of a message, with other fields in it."""
    return {**json.loads(msgspec.json.encode(message)), **other}


def offer(**other: object) -> list[tuple[str, Any]]:
    return [("offer", fields(OFFER, **other))]


def tensors(n: int, **other: Any) -> list[TensorSpec]:
    first = MANIFEST.tensors[0]
    return [first._replace(**{"name": f"t{i}", "shares": i - 1, **other}) for i in range(n)]


def names(n: int) -> dict[str, str]:
    return {f"{i:x}": "" for i in range(n)}


def meeting(transport: str, rendezvous: dict[str, str]) -> dict[str, Any]:
    return {"transport": transport, "rendezvous": rendezvous}


def hi(**other: object) -> list[tuple[str, Any]]:
    return [("hello", fields(hello(), **other))]


IDEAS: Final[dict[str, Idea]] = {
    "invented identity fields": Idea(
        "server is connected", lambda n: hi(identity={"hard": names(n)}), 500
    ),
    "invented identity fields behind a token": Idea(
        "server challenged",
        lambda n: [("hello", fields(hello(SECURED), identity={"hard": names(n)}))],
        500,
    ),
    "versions": Idea("server is connected", lambda n: hi(versions=[*range(2, n)]), 1000),
    "transports nobody has": Idea(
        "server is connected", lambda n: hi(transports=[*names(n)]), 1000
    ),
    "segments in falling order": Idea(
        "server is open", lambda n: [("request", {"segments": [*range(n, 0, -1)]})], 20_000
    ),
    "the same segment": Idea(
        "server is open", lambda n: [("request", {"segments": [0] * n})], 20_000
    ),
    "a chain of sharing tensors": Idea(
        "client greeted", lambda n: offer(manifest={"tensors": tensors(n)}), 1000
    ),
    "one tensor over and over": Idea(
        "client greeted", lambda n: offer(manifest={"tensors": tensors(n, name="embed")}), 1000
    ),
    "tensors of 2**62 bytes": Idea(
        "client greeted",
        lambda n: offer(manifest={"tensors": tensors(n, nbytes=2**62)}, segment_bytes=1),
        1000,
    ),
    "a shape of many dimensions": Idea(
        "client greeted",
        lambda n: offer(manifest={"tensors": tensors(1, name="embed", shape=[1] * n)}),
        20_000,
    ),
    "numbers of 4300 digits": Idea(
        "client greeted",
        lambda n: offer(manifest={"tensors": tensors(n, nbytes=10**4299)}),
        10,
    ),
    "digests": Idea("client greeted", lambda n: offer(segment_digests=[""] * n), 20_000),
    "an identity of many fields": Idea(
        "client greeted", lambda n: offer(identity={"hard": names(n)}), 5000
    ),
    "places to meet": Idea(
        "client greeted",
        lambda n: offer(candidates=({"transport": "tcp", "rendezvous": names(n)},)),
        5000,
    ),
    "facts": Idea(
        "client is curious", lambda n: [("description", {"identity": {}, "facts": names(n)})], 5000
    ),
    "differences": Idea(
        "client greeted",
        lambda n: [
            (
                "reject",
                {
                    "reason": "identity_mismatch",
                    "differences": [{"field": "", "mine": "", "theirs": ""}] * n,
                },
            )
        ],
        3000,
    ),
    "a long kind": Idea("client greeted", lambda n: [("x" * n, {})], 100_000),
    "fields nobody knows": Idea("client receives", lambda n: [("begin", names(n))], 5000),
    "refusals": Idea("client greeted", lambda n: [("reject", {"reason": "busy"})] * n, 200),
    "greetings after the end": Idea("server fell back", lambda n: hi() * n, 200),
}


def lines_of(idea: Idea, n: int) -> list[bytes]:
    return [f"{kind} {json.dumps(body)}".encode() for kind, body in idea.lines(n)]


def heard(idea: Idea, lines: list[bytes]) -> Conversation:
    """A session after the attack."""
    conversation = Conversation(idea.life.encode())
    for line in lines:
        conversation.take(line)
    return conversation


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this thread, of the best of some tries."""
    taken = []
    for _ in range(TRIES):
        began = time.thread_time()
        work()
        taken.append(time.thread_time() - began)
    return max(min(taken), TOO_SHORT_S)


@pytest.mark.parametrize("name", IDEAS)
def test_a_hostile_message_costs_time_in_proportion_to_its_size(name: str) -> None:
    idea = IDEAS[name]
    small, large = lines_of(idea, idea.size), lines_of(idea, idea.size * TIMES)

    once = seconds(lambda: heard(idea, small))
    eightfold = seconds(lambda: heard(idea, large))

    assert eightfold < once * NOT_QUADRATIC


@pytest.mark.parametrize("name", IDEAS)
def test_a_hostile_message_costs_memory_in_proportion_to_its_size(name: str) -> None:
    idea = IDEAS[name]
    lines = lines_of(idea, idea.size * TIMES)
    sent = sum(map(len, lines))

    tracemalloc.start()
    try:
        heard(idea, lines)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < OWN_BYTES + MOST_FOR_A_BYTE * sent
