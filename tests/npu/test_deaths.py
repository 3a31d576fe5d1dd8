"""Peers that die, freeze or never come. The server's process, engine and memory are unharmed.

How HCCL notices a dead peer on real hardware is not known, so each death is tried with a simulator
that notices at once, after its time-out, and never.
"""

import math
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.npu.topology import IMPATIENT, SHORT, Cast, Host, NpuPeer, served, soon
from tests.support.peers import MIB, Halt, How, Words

NOTICED = pytest.mark.parametrize(
    "knobs",
    [
        pytest.param({"SIM_HCCL_PEER_DEATH": "noticed"}, id="noticed"),
        pytest.param(
            {"SIM_HCCL_PEER_DEATH": "timeout", "SIM_HCCL_EXEC_TIMEOUT_MS": "2000"}, id="timeout"
        ),
        pytest.param({"SIM_HCCL_PEER_DEATH": "never"}, id="never"),
    ],
)
IN_THE_MIDDLE = 0.3
STAGING_BYTES = 80 * MIB
"""It takes 64 MiB, and the allocator rounds up, by stream and by size."""


def assert_unharmed(cast: Cast, server: Host) -> None:
    """Same process, an engine that answers, no communicator left, and the next is served."""
    before = server.ask()
    assert before["pid"] == server.pid
    after = server.becomes(lambda now: now["answers"] > before["answers"] + 20)
    assert after["trouble"] == ""
    assert after["wrong"] == 0
    assert_no_communicator(cast, server)
    served(cast.client(server), server)
    assert_no_communicator(cast, server)


def assert_no_communicator(cast: Cast, server: Host) -> None:
    """What the last one took is the device's again; the staging memory is kept, and bounded."""
    now = server.becomes(lambda now: now["other_bytes"] == server.bare["other_bytes"])
    assert now["torch_bytes"] <= server.bare["torch_bytes"] + STAGING_BYTES
    soon(
        lambda: all(end < math.inf for _, end in cast.trace.communicators(server.pid)),
        "no communicator is left",
    )


def has_closed(sessions: int, now: Words) -> bool:
    """Whether so many sessions have ended; who came while the device was taken is none of them."""
    return len([end for end in now["closed"] if end["reason"] != "busy"]) == sessions


def in_the_middle(cast: Cast, server: Host, how: How) -> NpuPeer:
    """A client that has halted with some of the bytes."""
    client = cast.client(
        server, halt=Halt(how, share=IN_THE_MIDDLE), deadlines=server.spec.deadlines
    )
    client.reached()
    assert cast.operations(client.pid)
    return client


@NOTICED
def test_a_client_killed_in_the_middle(cast: Cast, knobs: dict[str, str]) -> None:
    server = cast.server(model="large", knobs=knobs)

    in_the_middle(cast, server, "kill")

    server.becomes(lambda now: len(now["closed"]) == 1)
    assert_unharmed(cast, server)


@NOTICED
def test_a_client_frozen_in_the_middle(cast: Cast, knobs: dict[str, str]) -> None:
    server = cast.server(model="large", knobs=knobs, deadlines=SHORT)

    in_the_middle(cast, server, "stop").frozen = True

    closed = server.becomes(lambda now: len(now["closed"]) == 1)["closed"][0]["at"]
    times = server.ask("times")["times"]
    still = [at for at, _ in times if closed - SHORT.stall_s < at < closed]
    assert len(still) > 20  # while the transfer stood still
    assert_unharmed(cast, server)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_client_gone_before_joining(cast: Cast, how: How) -> None:
    server = cast.server(knobs=IMPATIENT, deadlines=SHORT)
    client = cast.client(server, halt=Halt(how, "validate"), deadlines=SHORT)
    client.frozen = how == "stop"
    client.reached()

    server.becomes(lambda now: len(now["closed"]) == 1)
    assert cast.trace.of({"HcclCommInit"}, client.pid) == []
    assert_unharmed(cast, server)


@NOTICED
def test_a_client_killed_while_joining(cast: Cast, knobs: dict[str, str], knob_file: str) -> None:
    server = cast.server(knobs={**knobs, **IMPATIENT}, deadlines=SHORT)
    Path(knob_file).touch()
    client = cast.client(server, knobs={"SIM_HCCL_INIT_BLOCKS": knob_file}, deadlines=SHORT)
    soon(lambda: cast.trace.of({"HcclCommInit"}, server.pid), "the server joins")
    client.signal(signal.SIGKILL)

    server.becomes(lambda now: len(now["closed"]) == 1)
    assert_unharmed(cast, server)


def test_one_death_after_another_adds_up_to_nothing(cast: Cast) -> None:
    server = cast.server(model="large")
    in_the_middle(cast, server, "kill")
    server.becomes(lambda now: len(now["closed"]) == 1)
    assert_unharmed(cast, server)
    calm = server.ask()

    for _ in range(4):
        in_the_middle(cast, server, "kill")
        begun = len(cast.trace.communicators(server.pid))
        server.becomes(partial(has_closed, begun))

    assert_unharmed(cast, server)
    server.becomes(lambda now: now["threads"] <= calm["threads"])
    server.becomes(lambda now: now["files"] <= calm["files"])
    server.becomes(lambda now: now["torch_bytes"] <= calm["torch_bytes"])


def waiting_in_the_middle(cast: Cast, knobs: dict[str, str]) -> tuple[Host, Host, NpuPeer]:
    """Two servers, and a client that has some of the bytes of the first and waits."""
    first, second = cast.server(model="large"), cast.server(model="large")
    client = cast.client(
        first, second, halt=Halt("wait", share=IN_THE_MIDDLE), knobs=knobs, deadlines=SHORT
    )
    client.reached()
    return first, second, client


@NOTICED
def test_a_server_killed_in_the_middle_costs_only_what_is_missing(
    cast: Cast, knobs: dict[str, str]
) -> None:
    first, second, client = waiting_in_the_middle(cast, knobs)
    first.signal(signal.SIGKILL)
    client.tell("go on")

    outcome = served(client, second)
    broken, whole = outcome["attempts"]
    assert 0 < broken["nbytes"] < outcome["nbytes"]
    assert broken["nbytes"] + whole["nbytes"] == outcome["nbytes"]


@NOTICED
def test_a_server_frozen_in_the_middle_costs_bounded_time(
    cast: Cast, knobs: dict[str, str]
) -> None:
    first, second, client = waiting_in_the_middle(cast, knobs)
    first.stop()
    client.tell("go on")

    outcome = served(client, second)
    assert outcome["attempts"][0]["reason"] in {"transfer_stalled", "transfer_failed"}
