"""A server in sleep mode, with vllm-ascend's own allocator (CaMemAllocator)."""

from dataclasses import replace

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


def _refusal(client: Actor) -> str:
    with pytest.raises(ActorError) as caught:
        client.up()
    found = client.said("netloader.session.closed") + client.said("NoWeightsError: ")
    return found[-1] if found else str(caught.value)
