"""Tensors by the thousand: each step takes time in proportion to them, and little for each."""

import gc
import hashlib
import math
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from netloader.fsm.canonical import canonical
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, TensorSpec, segments_of
from netloader.fsm.messages import Description
from netloader.io.store.module import ModuleStore, named_tensors
from netloader.io.tensors import manifest_of
from netloader.io.transports.tcp import batches
from netloader.io.watch import ModuleUsage
from netloader.wire.frames import Decoder, encode
from tests.unit.io.helpers import random

FEW, FIVE_TIMES = 2_000, 10_000
Step = Callable[[ModuleStore], object]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 4), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(8), requires_grad=False)


def module_of(store: ModuleStore) -> nn.Module:
    assert store.state is not None
    return store.state.module


def look(store: ModuleStore) -> object:
    return ModuleStore.of(module_of(store))


def manifest(store: ModuleStore) -> object:
    return manifest_of(store.state.named if store.state else ())


def digest(store: ModuleStore) -> object:
    return Manifest(store.manifest.tensors, store.manifest.values).digest


def views(store: ModuleStore) -> object:
    return [view for s in segments_of(store.manifest, 1 << 20) for view in store.views(s)]


def segments(store: ModuleStore) -> object:
    return segments_of(Manifest(store.manifest.tensors), 1 << 20)


def writable(store: ModuleStore) -> None:
    store.check_writable()


def spoken(store: ModuleStore) -> object:
    return Decoder(1 << 30).feed(
        encode(Description(Identity({"model": "demo"}), manifest=store.manifest))
    )


def groups(store: ModuleStore) -> object:
    memory = [memoryview(bytes(100))] * len(store.manifest.tensors)
    return list(batches(memory, 1 << 10))


def places(store: ModuleStore) -> object:
    segments = segments_of(store.manifest, 1 << 20)
    return [store.host_view(extent) for segment in segments for extent in segment.extents]


def usage(store: ModuleStore) -> object:
    assert store.state is not None
    return ModuleUsage(store.state).quick()


def plain_loop(store: ModuleStore) -> object:
    """What one cannot do without: each tensor's name, geometry and address."""
    return [
        (name, str(tensor.dtype), tensor.shape, tensor.stride(), tensor.data_ptr())
        for name, tensor in named_tensors(module_of(store))
    ]


def seconds(step: Step, store: ModuleStore) -> float:
    """The least of the processor's time that some calls took: nobody else's counts.

    Nor does garbage collection, which takes the longer the more this process holds, nor a tracer:
    coverage traces the lines of netloader, and not those of the loop it is compared with.
    """
    least = math.inf
    tracer = sys.gettrace()
    sys.settrace(None)
    gc.disable()
    try:
        for _ in range(3):
            begun = time.thread_time()
            step(store)
            least = min(least, time.thread_time() - begun)
    finally:
        gc.enable()
        sys.settrace(tracer)
    return least


@pytest.fixture(scope="module")
def stores() -> dict[int, ModuleStore]:
    counts = (FEW, FIVE_TIMES)
    return {n: ModuleStore.of(nn.Sequential(*(Layer() for _ in range(n // 2)))) for n in counts}


MOST: dict[Step, float] = {
    look: 7.0,
    manifest: 3.0,
    digest: 0.9,
    segments: 0.8,
    writable: 0.9,
    views: 2.0,
    places: 2.0,
    groups: 0.2,
    usage: 5.0,
    spoken: 1.0,
}
"""The steps of a transfer, and how often the time of the plain loop each may take."""


@pytest.mark.parametrize("step", MOST)
def test_five_times_the_tensors_do_not_take_twelve_times_the_time(
    stores: dict[int, ModuleStore], step: Step
) -> None:
    assert seconds(step, stores[FIVE_TIMES]) < 12 * seconds(step, stores[FEW])


@pytest.mark.parametrize(("step", "most"), MOST.items())
def test_a_step_takes_little_beside_a_plain_loop(
    stores: dict[int, ModuleStore], step: Step, most: float
) -> None:
    store = stores[FIVE_TIMES]

    assert seconds(step, store) < most * seconds(plain_loop, store)


def test_the_digest_is_that_of_each_field_in_order() -> None:
    first = TensorSpec("a", "float32", (2, 3), (3, 1), 24)
    tied = TensorSpec("b", "float32", (2, 3), (3, 1), 24, shares=0)
    same = TensorSpec("\u00e9", "float32", (2, 3), (3, 1), 24)
    turned = TensorSpec("c", "float32", (2, 3), (1, 2), 24)
    specs = (first, tied, same, turned)
    whole = canonical(specs) + canonical(())

    assert Manifest(specs).digest == hashlib.sha256(whole).hexdigest()
    assert len({Manifest((spec,)).digest for spec in specs}) == len(specs)


def test_views_of_many_tensors_show_each_ones_bytes() -> None:
    tensors = [random(1 + i % 7, seed=i) for i in range(1000)]
    store = ModuleStore((str(i), tensor) for i, tensor in enumerate(tensors))

    shown = b"".join(map(bytes, views(store)))  # type: ignore[call-overload]

    assert shown == b"".join(tensor.numpy().tobytes() for tensor in tensors)
