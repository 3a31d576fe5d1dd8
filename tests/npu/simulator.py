"""The real torch_npu over the simulated CANN runtime. Tests import it from here.

The runtime must be in the process before torch_npu is: it is built (once for all processes, see
tests/ascend_sim), loaded, and named in LD_LIBRARY_PATH for the processes that this one starts.
"""

import ctypes
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

from tests.ascend_sim.build import CACHE, LIBRARIES, build

ROOT: Final = Path(__file__).parents[2]

SETTINGS: Final = {
    # torch is not to import torch_npu by itself: plain `import torch` would look for CANN.
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    # Failures are raised where they happen, not once, somewhere, later. Tests undo it by name.
    "TASK_QUEUE_ENABLE": "0",
}


def load() -> Any:
    """Build the simulator, load it, and import torch_npu over it."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    folder = build(CACHE)
    paths = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if str(folder) not in paths:
        os.environ["LD_LIBRARY_PATH"] = ":".join([str(folder), *filter(None, paths)])
    for library in LIBRARIES:  # each after those it is linked to
        ctypes.CDLL(str(folder / f"lib{library}.so"), ctypes.RTLD_GLOBAL)
    return importlib.import_module("torch_npu")


torch_npu: Any = sys.modules.get("torch_npu") or load()
