"""Memory that may only be read: a fill that would write there is refused before it begins."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from netloader.io import WeightsError, fill
from tests.unit.io.helpers import IDENTITY, asking, module_of, sealed, serving

FILL: str = """
import sys
from pathlib import Path
from tests.unit.io.test_memory import refusal
print(refusal(Path(sys.argv[1]), sys.argv[2]), flush=True)
"""
LAYOUTS = {"dense": slice(None), "strided": slice(None, None, 2)}


def refusal(folder: Path, layout: str) -> str:
    """What `fill` says to a tensor on a file that is mapped for reading."""
    file, columns = folder / "weights", LAYOUTS[layout]
    np.zeros((256, 256), "f4").tofile(file)
    mapped = np.memmap(file, "f4", "r", shape=(256, 256))
    target = module_of(first=torch.zeros(4), w=torch.from_numpy(mapped)[:, columns])
    source = module_of(first=torch.ones(4), w=torch.ones(256, 256)[:, columns])
    with serving(source) as server:
        try:
            return fill(target, [sealed(server).endpoint], IDENTITY, asking()).history()
        except WeightsError as error:
            untouched = not target.get_parameter("first").any()
            return f"{error}; untouched: {untouched}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_that_may_only_be_read_is_refused_by_name(tmp_path: Path, layout: str) -> None:
    done = subprocess.run(  # in a process of its own: writing there ends it
        [sys.executable, "-W", "ignore", "-c", FILL, str(tmp_path), layout],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "w lies in memory that cannot be written; clone it, or map its file" in done.stdout
    assert "untouched: True" in done.stdout


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_a_mapped_file_that_may_be_written_is_filled(tmp_path: Path, mode: str) -> None:
    np.zeros(1000, "f4").tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", "f4", mode)  # type: ignore[call-overload]
    target, source = module_of(w=torch.from_numpy(mapped)), module_of(w=torch.ones(1000))
    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    assert outcome.ok, outcome.history()
    assert mapped.all()
