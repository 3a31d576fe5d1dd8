"""Memory that may only be read: a fill that would write there is refused before it begins."""

import gc
import mmap
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from netloader.fsm.manifest import Extent, segments_of
from netloader.io import WeightsError, fill
from netloader.io.failure import TransferError
from netloader.io.memory import HostMemory
from netloader.io.store.base import Store
from netloader.io.store.module import ModuleStore
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


# -- views of memory whose addresses are known ---------------------------------------------------


def shown(store: Store) -> bytes:
    (segment,) = segments_of(store.manifest, 1 << 30)
    return b"".join(store.views(segment))


def test_a_view_keeps_its_memory_when_the_store_is_given_up() -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[:] = b"w" * mmap.PAGESIZE
    mapped = weakref.ref(memory)
    store = ModuleStore([("w", torch.frombuffer(memory, dtype=torch.uint8))])
    view = store.host_view(Extent(0, 5, 7))
    del memory
    store.give_up()
    gc.collect()

    assert view is not None
    assert bytes(view) == b"wwwwwww"
    with pytest.raises(TransferError, match="given up"):
        store.host_view(Extent(0, 5, 7))
    view = None
    gc.collect()
    assert mapped() is None, "nothing else keeps it"


def test_memory_that_moved_is_found_where_it_is() -> None:
    tensor = torch.arange(10, dtype=torch.uint8)
    store = ModuleStore([("w", tensor)])
    tensor.untyped_storage().resize_(1 << 22)
    tensor.add_(1)

    assert shown(store) == bytes(range(1, 11))


def test_memory_that_shrank_is_not_read() -> None:
    tensor = torch.arange(1 << 20, dtype=torch.uint8)
    store = ModuleStore([("w", tensor)])
    tensor.untyped_storage().resize_(10)

    with pytest.raises(TransferError, match="the memory of w was freed"):
        shown(store)


def test_there_is_no_view_of_what_is_not_there() -> None:
    freed = torch.zeros(100)
    part = freed[50:]
    freed.untyped_storage().resize_(0)
    memory = HostMemory(enumerate((freed, part, torch.zeros(0), torch.ones(1))))

    assert [memory.view(number, 0, 1) for number in (0, 1, 2, 4)] == [None] * 4
    assert bytes(memory.view(3, 2, 2) or b"") == bytes(torch.ones(1).numpy())[2:]
