"""A whole pull: the next source, and the ordinary loader when there is none left."""

import signal
from pathlib import Path

from tests.npu.topology import SHORT, Cast
from tests.support.peers import Halt


def test_without_a_living_source_the_ordinary_loader_fills_the_same_bytes(
    cast: Cast, tmp_path: Path
) -> None:
    checkpoint = str(tmp_path / "weights.pt")
    servers = [cast.server(checkpoint=checkpoint) for _ in range(2)]
    for server in servers:
        server.signal(signal.SIGKILL)
        server.process.join()

    outcome = cast.client(*servers, checkpoint=checkpoint).hear()

    assert outcome["state"] == "fallback"
    assert [attempt["reason"] for attempt in outcome["attempts"]] == ["unreachable"] * 2
    assert not outcome["dirty"]
    assert outcome["digest"] == servers[0].digest
    assert outcome["in_place"]


def test_a_half_filled_model_is_whole_after_the_fallback(cast: Cast, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "weights.pt")
    server = cast.server(model="large", checkpoint=checkpoint)
    halt = Halt("wait", share=0.3)
    client = cast.client(server, checkpoint=checkpoint, deadlines=SHORT, halt=halt)
    client.reached()
    server.signal(signal.SIGKILL)
    client.tell("go on")

    outcome = client.hear()

    assert outcome["state"] == "fallback"
    assert outcome["dirty"]
    assert outcome["digest"] == server.digest
