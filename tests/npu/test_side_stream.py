"""A transfer and the engine's work do not queue up behind one another."""

from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Final

from tests.npu.simulator import ROOT
from tests.npu.topology import SHORT, Cast
from tests.support.children import process
from tests.support.planting import copied, planted

PROGRAM: Final = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from tests.ascend_sim.probe import hold, npu
    import torch
    from netloader.io import ServerOptions, serve
    from tests.support.peers import IDENTITY
    from tests.npu.models import MODELS, MIB

    model = MODELS["plain"](1, torch.device("npu", 0))
    options = ServerOptions(transports=("hccl",), segment_bytes=4 * MIB)
    with serve(model, IDENTITY, options=options) as server:
        print(server.endpoint, flush=True)
        sys.stdin.readline()
        with hold(npu.default_stream(0)):  # an engine that is busy with a long step
            print("busy", flush=True)
            sys.stdin.readline()
"""
"""A server; the engine beside it begins a step that does not end when it reads a line."""


def heard(child: Popen[str]) -> str:
    """The next line that is not a warning of torch_npu's."""
    assert child.stdout is not None
    return next(line for line in child.stdout if "Warning" not in line).strip()


def two_transfers(cast: Cast, source: Path) -> list[bool]:
    """Whether a client is served while the engine is idle, and while it is busy."""
    deadlines = replace(SHORT, queue_s=0.0)
    knobs = {"SIM_HOST_ID": "another"}
    with process(PROGRAM, str(source)) as child:
        endpoint = heard(child)
        idle = cast.client(endpoint, deadlines=deadlines, knobs=knobs).hear()["ok"]
        assert child.stdin is not None
        child.stdin.write("go on\n")
        child.stdin.flush()
        assert heard(child) == "busy"
        return [idle, cast.client(endpoint, deadlines=deadlines, knobs=knobs).hear()["ok"]]


def test_a_transfer_does_not_wait_for_the_engines_stream(cast: Cast) -> None:
    assert two_transfers(cast, ROOT) == [True, True]


def test_on_the_engines_stream_it_would(cast: Cast, tmp_path: Path) -> None:
    copy = copied(tmp_path, "netloader")
    guard = r"_side_streams\[device\] = .*\n"
    mistake = "_side_streams[device] = torch.npu.default_stream(device)\n"
    with planted(copy, "netloader/io/device.py", guard, mistake):
        assert two_transfers(cast, copy) == [True, False]
