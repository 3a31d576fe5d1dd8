"""Tensors that have to be copied to be read: one at a time, to save device memory.

A server digests on every core when its engine is warm: all memory but a little is taken by then.
"""

import pytest
import torch
from torch import nn

from netloader.fsm.identity import Identity
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.module import ModuleStore, WeightsError
from tests.npu.models import MIB, in_fractal_nz, packed
from tests.npu.simulator import torch_npu

ROWS, COLUMNS = 2048, 2048
SEGMENT_BYTES = MIB


def conversion() -> float:
    """What digesting a matrix in FRACTAL_NZ takes beside the matrix, as a share of it."""
    model = nn.Module()
    plain = torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16, device="npu")
    model.register_buffer("matrix", in_fractal_nz(plain))
    del plain
    before = torch_npu.npu.memory_allocated()
    torch_npu.npu.empty_cache()
    torch_npu.npu.reset_peak_memory_stats()
    offer = publish(
        ModuleStore.of(model),
        Identity({"model": "tiny"}),
        ServerOptions(segment_bytes=SEGMENT_BYTES),
    )
    offer.seal()
    taken: int = torch_npu.npu.max_memory_allocated() - before
    return taken / offer.entry.manifest.nbytes


@pytest.mark.parametrize("cores", [1, 8])
def test_digests_convert_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr("netloader.io.published.cores", lambda: cores)
    assert conversion() <= 1.1


@pytest.mark.parametrize("shape", [(33, 64), (64, 36)], ids=["rows", "columns"])
def test_packed_weights_that_do_not_fill_their_tiles_are_refused_by_name(
    shape: tuple[int, int],
) -> None:
    model = nn.Module()
    model.register_buffer("experts", packed(torch.zeros(shape, dtype=torch.int8, device="npu")))

    with pytest.raises(WeightsError, match="experts is stored as FRACTAL_NZ, which cannot travel"):
        ModuleStore.of(model)
