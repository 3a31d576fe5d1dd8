"""A server in sleep mode, with vllm-ascend's own allocator (CaMemAllocator)."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.ascend.topology import Actor, ActorError, Cast, WorkerSpec

SLEEPY = {"enable_sleep_mode": True}
WAITING = {"QUEUE_TIMEOUT_S": 3}


def test_sleep(cast: Cast) -> None:
    """Served, sleep 1 refused, awake and served, sleep 2 and awake refused for another reason."""
    plain = {"additional_config": {"weight_nz_mode": 0}}
    wanted = WorkerSpec("llama", WAITING, {**plain, **SLEEPY})
    client = WorkerSpec("llama", WAITING, plain, device=1)
    server = cast.offering(wanted)
    cast.compare(server.actor, cast.client(client, server.port).up())
    before = server.actor.tell("held")

    server.actor.tell("sleep", 1)
    assert "asleep" in _refusal(cast.client(client, server.port))
    server.actor.tell("wake_up")
    assert server.actor.tell("held") == before
    cast.compare(server.actor, cast.client(replace(client, device=2), server.port).up())

    server.actor.tell("sleep", 2)
    server.actor.tell("wake_up")
    assert server.actor.tell("held") != before
    assert "asleep" not in _refusal(cast.client(client, server.port))


def test_other_threads_run_inside_the_allocator(cast: Cast, tmp_path: Path) -> None:
    """Server and client in sleep mode: received over tcp and hccl; rebuilt after a failure.

    What is left of a transfer while vLLM allocates must not wait for torch's allocator with the
    interpreter's lock held.
    """
    extra = {**WAITING, "LAYOUT": "processed"}
    options = {"additional_config": {"weight_nz_mode": 0}, **SLEEPY}
    wanted = WorkerSpec("llama", extra, options, kind="yielding")
    server = cast.offering(wanted)
    client = replace(wanted, device=1)
    over_tcp = replace(client, extra={**extra, "TRANSPORT": "tcp"})
    cast.compare(server.actor, cast.client(over_tcp, server.port).up())
    cast.compare(server.actor, cast.client(replace(client, device=2), server.port).up())

    knob = tmp_path / "corrupt"
    knob.touch()
    faulty = replace(client, device=3, environment={"SIM_HCCL_CORRUPT": str(knob)})
    rebuilt = cast.recovering(faulty, server.port).up()
    assert rebuilt.said("netloader.fallback.engaged")
    cast.compare(server.actor, rebuilt)


def _refusal(client: Actor) -> str:
    with pytest.raises(ActorError) as caught:
        client.up()
    found = client.said("netloader.session.closed") + client.said("NoWeightsError: ")
    return found[-1] if found else str(caught.value)
