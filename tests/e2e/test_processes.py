"""Two and three real processes over loopback: killed, stopped, and measured."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any

import pytest

from tests.e2e.peers import MIB, Peer

pytestmark = pytest.mark.timeout(300)

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "gloo"])
GIB = 1024 * MIB


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def server(stack: ExitStack, **spec: Any) -> tuple[Peer, str, str]:
    """A server process, its endpoint and the digest of its weights."""
    peer = stack.enter_context(Peer("server", **spec))
    words = peer.hear()
    return peer, words["endpoint"], words["digest"]


@TRANSPORTS
def test_a_gibibyte_arrives_and_costs_no_memory_to_speak_of(
    stack: ExitStack, transport: str
) -> None:
    _, endpoint, digest = server(stack)
    client = stack.enter_context(Peer("client", transport=transport, sources=[endpoint]))
    outcome = client.hear()
    print(f"{transport}: {outcome['extra_kib'] / 1024:.0f} MiB beside the model")
    assert outcome["ok"], outcome
    assert outcome["digest"] == digest
    assert outcome["nbytes"] >= GIB - 9 * MIB
    assert outcome["extra_kib"] < 256 * 1024


@TRANSPORTS
def test_a_server_killed_in_the_middle_is_replaced_by_the_next_for_the_rest_only(
    stack: ExitStack, transport: str
) -> None:
    first, one, digest = server(stack)
    second, two, _ = server(stack)
    spec = {"transport": transport, "sources": [one, two], "tell_at": 0.4}
    client = stack.enter_context(Peer("client", **spec))
    client.hear()
    first.process.send_signal(signal.SIGKILL)
    outcome = client.hear()

    assert outcome["ok"], outcome
    assert outcome["digest"] == digest
    broken, whole = outcome["attempts"]
    print(f"{transport}: first {broken['nbytes']:,} bytes, second {whole['nbytes']:,} bytes")
    assert broken["reason"] in {"connection_lost", "transfer_failed"}
    assert 0 < broken["nbytes"] < outcome["nbytes"]
    assert broken["nbytes"] + whole["nbytes"] == outcome["nbytes"]
    assert any(state["sent"] == [whole["nbytes"]] for state in second.states())


@TRANSPORTS
def test_a_server_that_freezes_costs_the_stall_deadline_and_no_more(
    stack: ExitStack, transport: str
) -> None:
    first, one, digest = server(stack)
    _, two, _ = server(stack)
    spec = {"transport": transport, "sources": [one, two], "tell_at": 0.4, "stall_s": 3.0}
    client = stack.enter_context(Peer("client", **spec))
    client.hear()
    first.process.send_signal(signal.SIGSTOP)
    start = monotonic()
    outcome = client.hear()

    assert outcome["ok"], outcome
    assert outcome["digest"] == digest
    assert outcome["attempts"][0]["reason"] == "transfer_stalled"
    assert monotonic() - start < 3.0 + 30.0  # the stall, then the rest from the second source


@TRANSPORTS
def test_a_client_killed_in_the_middle_leaves_nothing_behind(
    stack: ExitStack, transport: str
) -> None:
    # Gloo leaves a sender whose peer died waiting for the stall deadline.
    host, endpoint, digest = server(stack, stall_s=3.0)
    spec = {"transport": transport, "sources": [endpoint]}
    with Peer("client", **spec) as warm:
        assert warm.hear()["ok"]
    calm = host.ask()
    with Peer("client", tell_at=0.3, **spec) as victim:
        victim.hear()
        os.kill(victim.process.pid, signal.SIGKILL)
    assert any(
        len(s["sent"]) == 2 and s["threads"] <= calm["threads"] and s["files"] <= calm["files"]
        for s in host.states()
    )
    with Peer("client", **spec) as heir:
        outcome = heir.hear()
        assert outcome["ok"]
        assert outcome["digest"] == digest
