"""A store in host memory."""

import pytest
import torch
from torch import nn

from netloader.errors import WeightsError
from netloader.fsm.manifest import Manifest
from netloader.io.failure import TransferError
from netloader.io.store.memory import HostStore
from netloader.io.store.module import ModuleStore, manifest_of
from tests.unit.io.helpers import bytes_of, random
from tests.unit.io.store.copying import copied


def test_host_memory_gives_tensors_as_the_manifest_has_them() -> None:
    embed = random(6, 4, seed=3)
    module = nn.Module()
    for name, tensor in {
        "turned": random(3, 4).t(),
        "holes": random(4, 6)[:, ::2],
        "empty": torch.empty(0, 2),
        "scalar": random(dtype=torch.float16),
        "odd": random(3, dtype=torch.uint8),
        "embed": embed,
        "head": embed,
    }.items():
        module.register_buffer(name, tensor)
    source = ModuleStore.of(module)
    store = HostStore(source.manifest)
    copied(source, store)

    held = store.tensors()
    wanted = dict(module.named_buffers(remove_duplicate=False))
    assert [*held] == [*wanted]
    assert {n: bytes_of(t) for n, t in held.items()} == {n: bytes_of(t) for n, t in wanted.items()}
    assert held["turned"].stride() == wanted["turned"].stride()
    assert held["head"].data_ptr() == held["embed"].data_ptr()
    assert ModuleStore([*held.items()]).manifest.tensors[0] == source.manifest.tensors[0]

    store.close()
    assert bytes_of(held["embed"]) == bytes_of(embed), "tensors keep the memory"
    with pytest.raises(TransferError, match="the memory of turned was freed"):
        store.tensors()


def test_memory_that_is_not_there_is_an_error() -> None:
    (small,) = manifest_of([("w", random(1))]).tensors
    manifest = Manifest((small._replace(nbytes=1 << 55),))
    with pytest.raises(WeightsError, match=f"no host memory of {1 << 55} bytes can be had"):
        HostStore(manifest)


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned here")
def test_pinned_memory_needs_an_accelerator() -> None:
    with pytest.raises(WeightsError, match="no host memory of 64 bytes can be had"):
        HostStore.pinned(manifest_of([("w", random(3))]))
