"""A model is put together of what was verified, on an NPU: whatever failed, whoever goes on.

As tests/property/test_assembly.py, with real copies between devices and casts of storage formats,
and by chance from seeds: a run takes too long for a search.
"""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from netloader.fsm.reasons import Reason
from netloader.io.chunks import chunks
from netloader.io.device import CPU, beside, rooms
from netloader.io.failure import TransferError
from netloader.io.formats import assign
from netloader.io.memory import memory_of
from netloader.io.store import ledger as ledger_module
from netloader.io.store import module as store_module
from netloader.io.store.copies import bring
from netloader.io.store.ledger import Lease, Ledger, SegmentWriter
from netloader.io.store.module import ModuleStore
from tests.npu.models import digest, every_kind, fractal
from tests.unit.io.helpers import Source

NPU: Final = torch.device("npu:0")
DEVICES: Final = (CPU, NPU)
"""What a transport writes on: tcp, and hccl."""
SEEDS: Final = range(4)
LANES: Final = 3
SEGMENTS: Final = 12
TRIES: Final = 300
"""Sources one after the other; some dozens are enough."""


def on_both(seed: int, device: torch.device) -> nn.Module:
    """Matrices in FRACTAL_NZ on one device, and tensors of each kind on the other."""
    module = fractal(seed, device)
    module.add_module("on_the_host", every_kind(seed + 1, CPU))
    return module


MODELS: Final = (every_kind, fractal, on_both)


class Lane:
    """One segment on its way; until its bytes come, its targets hold anything."""

    def __init__(self, lease: Lease, index: int, device: torch.device) -> None:
        segment = lease.segments[index]
        self.writer: SegmentWriter = lease.expect(segment)
        self.index = index
        extents = [extent for chunk in chunks(segment) for extent in chunk]
        self.targets = [self.writer.target(extent, device) for extent in extents]
        for target in self.targets:
            with beside(device):
                target.fill_(0xA5)

    def receive(self, block: bytearray) -> None:
        data = torch.frombuffer(block, dtype=torch.uint8)
        for target, part in zip(self.targets, rooms(data, self.targets), strict=True):
            with beside(target.device):
                target.copy_(part)
                here = target.cpu()
            self.writer.update(memory_of(here))


def fails_at_times(chance: Random, move: Callable[[Tensor, Tensor], None]) -> partial[None]:
    def moved(place: Tensor, received: Tensor) -> None:
        turn = chance.random()
        if turn > 0.1:
            move(place, received)
        if turn < 0.2:
            raise TransferError(Reason.TRANSFER_FAILED, "the device is out of sorts")

    return partial(moved)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_verified_segments_hold_the_servers_bytes_after_any_failure(
    build: Callable[[int, torch.device], nn.Module], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = Random(seed)
    monkeypatch.setattr(store_module, "assign", fails_at_times(chance, assign))
    monkeypatch.setattr(ledger_module, "bring", fails_at_times(chance, bring))
    models = [build(100 * content, NPU) for content in range(2)]
    target = build(200, NPU)
    ledger = Ledger(ModuleStore.of(target), lambda *_: None)
    sources = [Source(model, ledger.total // SEGMENTS) for model in models]
    content = 0

    for _ in range(TRIES):
        lease = ledger.lease(sources[content].offer)
        missing = [*ledger.progress.missing()]
        if not missing:
            ledger.release(lease)
            break
        chance.shuffle(missing)
        device = chance.choice(DEVICES)
        lanes = [Lane(lease, index, device) for index in missing[:LANES]]
        chance.shuffle(lanes)
        for lane in lanes[: chance.randint(1, LANES)]:  # then the source is gone
            block = bytearray(sources[content].blocks[lane.index])
            spoilt = chance.random() < 0.1
            block[len(block) // 2] ^= spoilt
            failed = ""
            try:
                lane.receive(block)
            except TransferError as error:
                failed = error.detail
            assert ("out of sorts" in failed) or bool(failed) == spoilt
        ledger.release(lease)
        if chance.random() < 0.1:
            content = 1 - content
        if chance.random() < 0.1:  # the call ended; the caller goes on from its outcome
            before = ledger.progress
            ledger = Ledger(ModuleStore.of(target), lambda *_: None)
            ledger.resume(before, lambda: False)

    assert not ledger.progress.missing()
    assert digest(target) == digest(models[content])
