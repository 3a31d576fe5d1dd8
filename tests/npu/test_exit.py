"""A process that ends while it is still reading its device's memory ends as it wants to."""

import subprocess
import sys
from typing import Final

from tests.npu.simulator import ROOT

PROGRAM: Final = """
from tests.npu.simulator import torch_npu
import torch
from netloader.io.server import serve
model = torch.nn.Module()
for i in range(20):
    memory = torch.empty(50_000_000, dtype=torch.uint8, device="npu:0")
    model.register_buffer(f"w{i}", memory)
server = serve(model, {"model": "large"})
"""
REPEATS: Final = 3
"""Without a word to the thread that hashes, four of five such processes died of SIGABRT."""


def test_a_process_may_end_while_its_weights_are_hashed() -> None:
    for _ in range(REPEATS):
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, ended.stderr[-500:]
