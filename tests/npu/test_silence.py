"""Device work that is silently dropped is not success.

After a failure in its task queue torch_npu raises once, and drops what is queued later without a
word (HCCL.md 4.6): `torch.full(...).cpu()` gives whatever was there, `synchronize()` returns. The
tests elsewhere run without that queue, as failures are easier to place then.
"""

from pathlib import Path
from typing import Final

import pytest

from tests.ascend_sim.probe import run
from tests.npu.simulator import ROOT
from tests.support.planting import copied, planted

PROGRAM: Final = """
    import os, sys, threading
    from pathlib import Path
    sys.path.insert(0, os.environ["SOURCE"])
    from tests.npu.simulator import torch_npu
    import torch
    from torch.distributed import BroadcastOptions, HashStore
    from torch_npu._C._distributed_c10d import ProcessGroupHCCL
    from netloader.io import device

    npu = torch.device("npu", 0)
    torch.npu.set_device(npu)
    device.ANSWER_S = 1.0
    there = torch.arange(64, dtype=torch.uint8).to(npu)

    def fetch():
        with device.beside(npu):
            return device.Readback([there], npu).wait(threading.Event()).tolist()

    def outcome(work):  # torch_npu may also wait for its dead queue, and not come back
        answers = []
        def run():
            try:
                answers.append(work())
            except Exception as error:
                answers.append(str(error))
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(20)
        return answers[0] if answers else "hangs"

    print(outcome(fetch) == list(range(64)))

    options = ProcessGroupHCCL.Options()
    options.global_ranks_in_group = [0]
    group = ProcessGroupHCCL(HashStore(), 0, 1, options)
    group.broadcast([there], BroadcastOptions()).wait()
    torch.npu.synchronize()
    Path(os.environ["SIM_HCCL_SYNC_ERR"]).touch()

    def work():
        group.broadcast([there], BroadcastOptions())
        torch.npu.synchronize()
        return torch.full((4,), 7, dtype=torch.uint8, device=npu).cpu().tolist()

    for _ in range(1000):  # until it has raised, once, wherever that is
        values = outcome(work)
        if values == "hangs" or (isinstance(values, list) and values != [7] * 4):
            break
    print(values)
    print(outcome(fetch))
    sys.stdout.flush()
    os._exit(0)
"""


def what_is_read(source: Path, knob_file: str) -> str:
    """What a read back says when the device does nothing any more."""
    knobs = {"TASK_QUEUE_ENABLE": "1", "SIM_HCCL_SYNC_ERR": knob_file, "SOURCE": str(source)}
    ran = run(PROGRAM, **knobs)
    dropped, after = ran.said[-2:]
    assert "True" in ran.said, ran.errors[-500:]
    assert dropped != "[7, 7, 7, 7]"  # the trap is there
    return after


def test_device_work_that_is_silently_dropped_is_not_success(knob_file: str) -> None:
    assert "reading from npu:0 took longer" in what_is_read(ROOT, knob_file)


def test_who_synchronizes_instead_of_asking_takes_old_bytes_for_new(
    tmp_path: Path, knob_file: str
) -> None:
    copy = copied(tmp_path, "netloader")
    guard = r"poll\(self\._event\.query, .*\)"
    mistake = "torch.get_device_module(self._device).synchronize()"
    with planted(copy, "netloader/io/device.py", guard, mistake):
        assert what_is_read(copy, knob_file) in (str(list(range(64))), "hangs")


@pytest.fixture
def knob_file(tmp_path: Path) -> str:
    """A file that does not exist yet."""
    return str(tmp_path / "on")
