"""What is left behind when a transfer fails, and what a transfer asks of HCCL."""

from dataclasses import replace
from pathlib import Path

from tests.ascend.topology import Cast, WorkerSpec, paired
from tests.npu.trace import CREATED, DESTROYING, MOVING, Trace

PROCESSED = {"LAYOUT": "processed"}
COMPILED = {"enforce_eager": False}
"""With compilation on, vLLM registers a hook of the whole process for each model."""
STAGING_MIB = 64
"""What a client keeps for good when a transfer has failed; see docs/operate/ascend.md."""


def test_fallback_in_the_middle(cast: Cast, tmp_path: Path) -> None:
    """Bits flip in the middle, compilation on: the first model is freed, and built again."""
    knob = tmp_path / "corrupt"
    knob.touch()
    wanted = WorkerSpec("llama-large", {**PROCESSED, "SEGMENT_MIB": 1}, COMPILED)
    server = cast.offering(wanted)
    faulty = replace(wanted, device=1, environment={"SIM_HCCL_CORRUPT": str(knob)})
    client = cast.recovering(faulty, server.port).up()
    assert client.said("netloader.fallback.engaged")
    assert not client.said("netloader.loader.received")
    cast.compare(server.actor, client)
    samples = client.tell("samples_taken")
    weights = samples[-1] - STAGING_MIB
    lowest = min(samples[samples.index(next(s for s in samples if s >= weights)) :])
    assert max(samples) < weights + 2 * STAGING_MIB, f"MiB {samples}"
    assert lowest - STAGING_MIB < weights / 2, f"MiB {samples}"
    cast.seen.append(
        f"MiB in tensors: {samples[0]} before, {max(samples)} at most, {lowest} between the first"
        f" model and the second, {samples[-1]} after, {STAGING_MIB} of them staging"
    )


def test_calls_of_one_transfer(cast: Cast) -> None:
    """MoE W8A8: the HCCL calls of one transfer, on either side."""
    trace = Trace(str(cast.trace))
    server, client = paired(cast, WorkerSpec("moe-w8a8", PROCESSED))
    sent = []
    for role, actor in (("server", server), ("client", client)):
        made, moved, gone = (
            [call for call in trace.of(names, actor.pid) if call.number("comm") > 1]
            for names in (CREATED, MOVING, DESTROYING)
        )  # the first communicator is the engine's own
        assert len(made) == len(gone) == 1
        assert {call.name for call in moved} == {"HcclBatchSendRecv"}
        sent.append([call.number("sent") + call.number("received") for call in moved])
        words = ", ".join(f"{nbytes:,}" for nbytes in sent[-1])
        cast.seen.append(f"{role}: 1 communicator, HcclBatchSendRecv of {words} bytes, destroyed")
    assert sent[0] == sent[1]
