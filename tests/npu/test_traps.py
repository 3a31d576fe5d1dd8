"""What torch_npu and HCCL do that nobody would expect, and that none of it happens to us.

Each trap is a scenario that goes well, and one that goes wrong as soon as the guard against it is
taken out of a copy of netloader: a test that could not fail would guard nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.npu.topology import SHORT, Cast, Host, NpuPeer
from tests.support.peers import Halt
from tests.support.planting import copied, planted

pytestmark = pytest.mark.timeout(200)

BACKENDS = "netloader/io/transports/backends.py"
PAIR = "netloader/io/transports/peer_group.py"
DEVICE = "netloader/io/device.py"

SOON_S = 10.0
"""More than the stall deadline and the time of two busy cores, less than what a trap costs."""
WATCHDOG_S = 4.0
"""The watchdog looks once a second, and its process is gone within another."""


@pytest.fixture
def source() -> str:
    """Netloader as it is; `test_without_its_guard_the_trap_snaps` gives another."""
    return ""


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    """A file that is not there yet."""
    return tmp_path / "meeting"


def frozen_client(cast: Cast, source: str, **knobs: str) -> Host:
    """A server whose client has frozen in the middle of a transfer."""
    server = cast.server(model="large", source=source, deadlines=SHORT, knobs=knobs)
    client = cast.client(server, halt=Halt("stop", share=0.2), deadlines=SHORT)
    client.reached()
    client.frozen = True
    return server


def assert_next_is_served(cast: Cast, server: Host) -> None:
    outcome = cast.client(server, deadlines=SHORT).hear(SOON_S)
    assert outcome["ok"], outcome["attempts"]
    assert outcome["digest"] == server.digest


def test_wait_does_not_wait(cast: Cast, source: str) -> None:
    server = frozen_client(cast, source)

    closed = server.becomes(lambda now: now["closed"], SOON_S)["closed"]

    # Only who asks whether an operation is complete knows that it is not.
    assert closed[0]["reason"] == "transfer_stalled"
    assert "moving a chunk" in closed[0]["detail"]


def test_a_new_thread_starts_on_device_0(cast: Cast, source: str) -> None:
    knobs = {"SIM_NPU_COUNT": "3"}
    server = cast.server(device=2, knobs=knobs, source=source, deadlines=SHORT)
    client = cast.client(server, device=1, knobs=knobs, deadlines=SHORT)

    outcome = client.hear(SOON_S)
    assert outcome["ok"], outcome["attempts"]

    for peer, own in ((server, 2), (client, 1)):
        used = cast.trace.of({"aclrtMallocAlign32", "HcclCommInit"}, peer.pid)
        assert {call.number("device") for call in used} == {own}


def test_a_failed_task_would_stop_every_stream_of_the_server(cast: Cast, source: str) -> None:
    knobs = {"HCCL_EXEC_TIMEOUT": "1", "SIM_CTX_POISON": "1", "SIM_HCCL_PEER_DEATH": "timeout"}
    server = frozen_client(cast, source, **knobs)

    server.becomes(lambda now: now["closed"], SOON_S)

    answers = server.ask()["answers"]
    server.becomes(lambda now: now["answers"] > answers or now["trouble"], SOON_S)
    assert server.ask()["trouble"] == ""


def test_the_watchdog_would_kill_the_server(cast: Cast, source: str, meeting: Path) -> None:
    members: list[NpuPeer] = [cast.member(rank, meeting, source=source) for rank in (0, 1)]
    for member in members:
        member.hear()
    survivor, other = members
    other.process.kill()
    survivor.becomes(lambda now: all(now["failed"]), SOON_S)

    # The group is kept, as it is until the session is over: its watchdog has time to look.
    survivor.process.join(WATCHDOG_S)

    assert survivor.process.exitcode is None


def test_a_peer_that_never_joins(cast: Cast, source: str, meeting: Path) -> None:
    meeting.touch()
    server = cast.server(source=source, deadlines=SHORT)
    patient = replace(SHORT, stall_s=60.0)
    cast.client(server, knobs={"SIM_HCCL_INIT_BLOCKS": str(meeting)}, deadlines=patient)

    # HCCL would wait for two minutes, and nothing can end that.
    closed = server.becomes(lambda now: now["closed"], SOON_S)["closed"]

    assert closed[0]["reason"] == "transfer_stalled"
    assert "joining the group" in closed[0]["detail"]


def test_shutdown_would_hang(cast: Cast, source: str) -> None:
    server = frozen_client(cast, source, SIM_HCCL_PEER_DEATH="never")

    server.becomes(lambda now: now["closed"], SOON_S)

    server.becomes(lambda now: now["other_bytes"] == server.bare["other_bytes"], SOON_S)
    assert_next_is_served(cast, server)


def test_an_aborted_group_is_never_used_again(cast: Cast, source: str) -> None:
    server = cast.server(model="large", source=source, deadlines=SHORT)
    client = cast.client(server, halt=Halt("kill", share=0.2), deadlines=SHORT)
    client.reached()
    server.becomes(lambda now: now["closed"], SOON_S)

    assert_next_is_served(cast, server)

    made = cast.trace.of({"HcclCommInit"}, server.pid)
    names = {call.details.split("name=")[1].split()[0] for call in made}
    assert len(names) == len(made) == 2


def test_a_plain_send_would_have_a_communicator_without_options(cast: Cast, source: str) -> None:
    server = cast.server(source=source, deadlines=SHORT)
    client = cast.client(server, deadlines=SHORT)

    outcome = client.hear(SOON_S)
    assert outcome["ok"], outcome["attempts"]

    for peer in (server, client):
        assert {call.name for call in cast.operations(peer.pid)} == {"HcclBatchSendRecv"}


def test_a_group_would_pass_itself_off_as_the_host_s_world(cast: Cast, source: str) -> None:
    launcher = {"RANK": "7"}  # as torchrun sets for every rank of a host's world
    server = cast.server(source=source, knobs=launcher, deadlines=SHORT)
    client = cast.client(server, knobs=launcher, deadlines=SHORT)

    outcome = client.hear(SOON_S)
    assert outcome["ok"], outcome["attempts"]

    # HCCL steers the network's load by what a communicator says of the job that it is part of.
    (made,) = cast.trace.of({"HcclCommInit"}, server.pid)
    assert made.number("world_rank") == 0


def test_no_exception_is_no_proof_that_bytes_are_right(
    cast: Cast, source: str, meeting: Path
) -> None:
    server = cast.server(deadlines=SHORT)
    meeting.touch()
    knobs = {"SIM_HCCL_CORRUPT": str(meeting)}  # one byte of each message, without any error
    client = cast.client(server, source=source, knobs=knobs, deadlines=SHORT)

    outcome = client.hear(SOON_S)

    assert not outcome["ok"]
    assert outcome["attempts"][0]["reason"] == "digest_mismatch"


class Trap(NamedTuple):
    """A scenario, where the guard is, and what is there without it."""

    scenario: Callable[..., None]
    file: str
    guard: str
    mistake: str


TRAPS = (
    Trap(
        test_wait_does_not_wait,
        BACKENDS,
        r"    poll\(work\.is_completed, .*\n    if error := failure\(work\):\n.*\n",
        "",
    ),
    Trap(
        test_a_new_thread_starts_on_device_0,
        DEVICE,
        r"    if threading\..*\n.*\n    with module\.device\(device\), module\.stream\(.*\n",
        "    with contextlib.nullcontext():\n",
    ),
    Trap(
        test_a_failed_task_would_stop_every_stream_of_the_server,
        BACKENDS,
        r"    options\.hccl_config = .*\n",
        "",
    ),
    Trap(
        test_the_watchdog_would_kill_the_server,
        BACKENDS,
        r"    group\.set_watchdog_status\(.*\n",
        "",
    ),
    Trap(
        test_a_peer_that_never_joins,
        PAIR,
        r'poll\(self\._over\.is_set, "joining the group", timeout_s, stop\)',
        "self._over.wait()",
    ),
    Trap(
        test_shutdown_would_hang,
        BACKENDS,
        r"def _ends_with_its_last_reference\(group: Any\) -> None:\n",
        "def _ends_with_its_last_reference(group: Any) -> None:\n    group.shutdown()\n",
    ),
    Trap(
        test_an_aborted_group_is_never_used_again,
        BACKENDS,
        r"(    group\.set_watchdog_status\(.*\n)    return group\n",
        r'\1    return globals().setdefault("kept", group)\n',
    ),
    Trap(
        test_a_plain_send_would_have_a_communicator_without_options,
        BACKENDS,
        r"    return group\.batch_isend_irecv\(.*\n",
        "    return _send_or_receive(group, buffer, rank)\n",
    ),
    Trap(
        test_a_group_would_pass_itself_off_as_the_host_s_world,
        BACKENDS,
        r"    options\.global_ranks_in_group = MEMBERS  # .*\n",
        "",
    ),
    Trap(
        test_no_exception_is_no_proof_that_bytes_are_right,
        "netloader/io/store/ledger.py",
        r"if self\._hasher\.hexdigest\(\) != self\._digest:",
        "if False:",
    ),
)
BY_NAME = {trap.scenario.__name__.removeprefix("test_"): trap for trap in TRAPS}


def play(trap: Trap, cast: Cast, source: str, meeting: Path) -> None:
    """Run a scenario, with a file if it wants one."""
    wanted = "meeting" in trap.scenario.__code__.co_varnames[: trap.scenario.__code__.co_argcount]
    trap.scenario(cast, source, *([meeting] if wanted else []))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Netloader, free to be spoilt."""
    return copied(tmp_path_factory.mktemp("copy"), "netloader")


@pytest.mark.parametrize("name", BY_NAME)
def test_without_its_guard_the_trap_snaps(cast: Cast, copy: Path, name: str, meeting: Path) -> None:
    trap = BY_NAME[name]
    with (
        planted(copy, trap.file, trap.guard, trap.mistake),
        pytest.raises((AssertionError, EOFError, ConnectionError)) as caught,
    ):
        play(trap, cast, str(copy), meeting)
    print(f"{name}: {str(caught.value)[:300] or caught.type.__name__}")
