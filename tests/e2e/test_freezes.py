"""Peers that freeze (SIGSTOP) or die (SIGKILL) in each phase: how soon the other side is free.

A peer halts itself when its session enters a state, so a phase is hit exactly. A client is frozen
before it says hello, with the offer in hand, or with a quarter of the bytes; a server before it
accepts, with the request in hand, or while it sends. FREEZE lines give the seconds from the freeze
to the moment the other side is free: a client that asks its next source, a server that closed the
session.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from netloader.config import Deadlines
from netloader.io.clock import monotonic
from tests.support.peers import Halt, How, Peer, Spec, Words, act_as_client, serving, with_chances

pytestmark = pytest.mark.timeout(120)

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "gloo"])
PHASES = pytest.mark.parametrize("phase", ["handshake", "validate", "transfer"])
SHORT = Deadlines(
    connect_s=2, handshake_s=1.5, validate_s=1.5, stall_s=2, transfer_base_s=60, queue_s=0
)
LONG = Deadlines(queue_s=0)
DEADLINES_S = {
    "handshake": SHORT.handshake_s,
    "validate": SHORT.validate_s,
    "transfer": SHORT.stall_s,
}
ROOM_S = 6.0
"""What two busy cores may add to a deadline, with the second that a settled link lingers."""
SOON_S = 8.0
"""Seconds, and less than any of the LONG deadlines: a death is noticed, not waited out."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Scene:
    """A server with one place, which has served one client, and a spare server."""

    def __init__(self, stack: ExitStack, transport: str, deadlines: Deadlines) -> None:
        self._stack = stack
        self.transport = transport
        self.spec = Spec(deadlines=deadlines, transports=(transport,), max_clients=1)
        self.server, self.endpoint, self.digest = self.serve()
        self.assert_served()

    def serve(self, halt: Halt | None = None) -> tuple[Peer, str, str]:
        """One more server, its endpoint and digest."""
        peer, words = serving(replace(self.spec, halt=halt))
        return self._stack.enter_context(peer), words["endpoint"], words["digest"]

    def client(self, *sources: str, halt: Halt | None = None) -> Peer:
        """A client of some sources."""
        spec = replace(self.spec, sources=with_chances(sources), halt=halt)
        return self._stack.enter_context(Peer(act_as_client, spec))

    def assert_served(self, endpoint: str = "") -> None:
        """A client gets everything, which shows that the only place is free."""
        outcome = self.client(endpoint or self.endpoint).hear()
        assert outcome["ok"], outcome["attempts"]
        assert outcome["digest"] == self.digest


def halted_client(scene: Scene, how: How, phase: str, spare: str) -> tuple[Peer, Words, float]:
    """A client that has halted in a phase, what the server held before, and when it halted."""
    calm = scene.server.becomes(lambda now: now["closed"])
    halt = Halt(how, share=0.25) if phase == "transfer" else Halt(how, phase)
    client = scene.client(scene.endpoint, spare, halt=halt)
    return client, calm, client.reached()


def server_free(scene: Scene, calm: Words, since: float) -> tuple[Words, float]:
    """How the server ended the session, and after how many seconds; then nothing of it is left."""
    old = len(calm["closed"])
    state = scene.server.becomes(
        lambda now: (
            len(now["closed"]) > old
            and now["threads"] <= calm["threads"]
            and now["files"] <= calm["files"]
        )
    )
    assert not state["errors"]
    end: Words = state["closed"][old]
    return end, end["at"] - since


@TRANSPORTS
@PHASES
def test_a_frozen_client_costs_the_server_the_deadline_of_the_phase(
    stack: ExitStack, transport: str, phase: str
) -> None:
    scene = Scene(stack, transport, SHORT)
    _, spare, _ = scene.serve()
    client, calm, frozen = halted_client(scene, "stop", phase, spare)
    end, took = server_free(scene, calm, frozen)
    print(f"FREEZE {transport} client {phase} {took:.2f} deadline {DEADLINES_S[phase]}")
    assert end["reason"] == ("transfer_stalled" if phase == "transfer" else "deadline_passed")
    assert took < DEADLINES_S[phase] + ROOM_S
    scene.assert_served()

    client.signal(signal.SIGCONT)
    outcome = client.hear()
    assert outcome["ok"], outcome["attempts"]
    assert outcome["digest"] == scene.digest
    scene.assert_served()


@TRANSPORTS
@PHASES
def test_a_frozen_server_costs_the_client_the_deadline_of_the_phase(
    stack: ExitStack, transport: str, phase: str
) -> None:
    scene = Scene(stack, transport, SHORT)
    # A server enters TRANSFER before it says so: its client is still in VALIDATE.
    halt = Halt("stop", "transfer") if phase == "validate" else None
    victim, endpoint, _ = scene.serve(halt)
    client, frozen = frozen_server(scene, victim, endpoint, phase)
    outcome = client.hear()
    took = outcome["tried"][1] - frozen
    print(f"FREEZE {transport} server {phase} {took:.2f} deadline {DEADLINES_S[phase]}")
    assert outcome["ok"], outcome["attempts"]
    assert outcome["digest"] == scene.digest
    first = outcome["attempts"][0]
    assert first["reason"] == ("transfer_stalled" if phase == "transfer" else "deadline_passed")
    assert took < DEADLINES_S[phase] + ROOM_S

    # What a thawed server still had to say reaches nobody's weights, and it serves the next.
    victim.signal(signal.SIGCONT)
    thawed = victim.becomes(lambda now: now["closed"])
    assert not thawed["errors"]
    scene.assert_served(endpoint)
    assert client.ask()["digest"] == scene.digest


def frozen_server(scene: Scene, victim: Peer, endpoint: str, phase: str) -> tuple[Peer, float]:
    """A client whose server froze in a phase, and when."""
    match phase:
        case "handshake":
            victim.stop()
            frozen = monotonic()
            return scene.client(endpoint, scene.endpoint), frozen
        case "validate":
            client = scene.client(endpoint, scene.endpoint)
            return client, victim.reached()
        case _:
            client = scene.client(endpoint, scene.endpoint, halt=Halt("wait", share=0.25))
            client.reached()
            victim.stop()
            client.tell("go on")
            return client, monotonic()


@TRANSPORTS
@PHASES
def test_a_client_that_dies_leaves_its_place_within_seconds(
    stack: ExitStack, transport: str, phase: str
) -> None:
    # Gloo leaves a sender whose peer died waiting for the stall deadline, so that one is short.
    deadlines = replace(LONG, stall_s=3) if transport == "gloo" else LONG
    scene = Scene(stack, transport, deadlines)
    _, calm, died = halted_client(scene, "kill", phase, scene.endpoint)
    end, took = server_free(scene, calm, died)
    print(f"KILL {transport} client {phase} {took:.2f} {end['reason']}")
    assert end["reason"] in {"connection_lost", "transfer_failed"}
    assert took < SOON_S
    scene.assert_served()


@TRANSPORTS
@PHASES
def test_a_server_that_dies_lets_its_client_go_on_within_seconds(
    stack: ExitStack, transport: str, phase: str
) -> None:
    deadlines = replace(LONG, stall_s=3) if transport == "gloo" else LONG
    scene = Scene(stack, transport, deadlines)
    # On entering VALIDATE a server has the hello in hand: its client is still in HANDSHAKE.
    states = {"handshake": "validate", "validate": "transfer"}
    halt = Halt("kill", states[phase]) if phase in states else None
    victim, endpoint, _ = scene.serve(halt)
    if halt:
        client = scene.client(endpoint, scene.endpoint)
        died = victim.reached()
    else:
        client = scene.client(endpoint, scene.endpoint, halt=Halt("wait", share=0.25))
        client.reached()
        victim.signal(signal.SIGKILL)
        died = monotonic()
        client.tell("go on")
    outcome = client.hear()
    took = outcome["tried"][1] - died
    print(f"KILL {transport} server {phase} {took:.2f} {outcome['attempts'][0]['reason']}")
    assert outcome["ok"], outcome["attempts"]
    assert outcome["digest"] == scene.digest
    assert outcome["attempts"][0]["reason"] in {"connection_lost", "transfer_failed"}
    assert took < SOON_S
