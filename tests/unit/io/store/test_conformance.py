"""What every store promises."""

import gc
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import nn

from netloader.errors import LocalProtocolError
from netloader.fsm.manifest import Manifest, Progress, segments_of
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of
from netloader.io.store.base import Store
from netloader.io.store.files import FileStore
from netloader.io.store.ledger import Lease, Ledger
from netloader.io.store.memory import HostStore
from netloader.io.store.module import ModuleStore
from tests.unit.io.helpers import Source, module_of, random

SEGMENT: Final = 40


def model(seed: int) -> nn.Module:
    """Seven segments: one is `plain`, `holes` is in two of them, `last` in four."""
    return module_of(
        plain=random(10, seed=seed),
        holes=random(10, 4, seed=seed + 1)[:, ::2],
        last=random(39, seed=seed + 2),
    )


RIGHT, OTHER = Source(model(1), SEGMENT), Source(model(50), SEGMENT)
MANIFEST: Final[Manifest] = ModuleStore.of(model(1)).manifest
EVERY: Final = frozenset(range(len(RIGHT.blocks)))


class Case:
    """A store that holds nothing of use yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "made"
        self.store = self.made()

    def made(self) -> Store:
        raise NotImplementedError

    def again(self) -> Store:
        """A store of what this one holds now, as the caller of another `fill` would make it."""
        return self.store

    def free(self) -> None:
        """Free the memory."""
        assert isinstance(self.store, HostStore | FileStore)
        self.store.close()

    def spoil(self, index: int) -> None:
        """Change the last byte of a segment that was verified."""
        last = segments_of(MANIFEST, SEGMENT)[index].extents[-1]
        memory_of(self.store.place(last))[-1] ^= 1


class OfModule(Case):
    def made(self) -> Store:
        self.module = model(100)
        return ModuleStore.of(self.module)

    def again(self) -> Store:
        return ModuleStore.of(self.module)

    def free(self) -> None:
        for parameter in self.module.parameters():
            parameter.data.untyped_storage().resize_(0)

    def spoil(self, index: int) -> None:
        last = segments_of(MANIFEST, SEGMENT)[index].extents[-1]
        tensor = self.module.get_parameter(MANIFEST.tensors[last.tensor].name).data
        element = (last.start + last.length) // tensor.element_size() - 1
        tensor[torch.unravel_index(torch.tensor(element), tensor.shape)] = 1.5


class OfStateDict(OfModule):
    def made(self) -> Store:
        self.module = model(100)
        return ModuleStore(self.module.state_dict().items())

    def again(self) -> Store:
        return ModuleStore(self.module.state_dict().items())


class OfHostMemory(Case):
    def made(self) -> Store:
        return HostStore(MANIFEST)


class OfFiles(Case):
    def made(self) -> Store:
        return FileStore.create(self.folder, MANIFEST, file_bytes=100)


@pytest.fixture(params=[OfModule, OfStateDict, OfHostMemory, OfFiles])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    made: type[Case] = request.param
    return made(tmp_path)


def ledger_of(store: Store, before: Progress | None = None) -> Ledger:
    ledger = Ledger(store, lambda done, total: None)
    if before is not None:
        ledger.resume(before, lambda: False)
    return ledger


def bring(lease: Lease, source: Source, index: int) -> None:
    """Receive one segment as a transport does."""
    writer = lease.expect(lease.segments[index])
    start = 0
    for view in writer.views():
        view[:] = source.blocks[index][start : start + len(view)]
        start += len(view)
        writer.update(view)


def fill(store: Store, source: Source, before: Progress | None = None) -> Progress:
    """Bring all that is missing; returns the progress."""
    ledger = ledger_of(store, before)
    lease = ledger.lease(source.offer)
    for index in ledger.progress.missing():
        bring(lease, source, index)
    ledger.release(lease)
    return ledger.progress


def blocks(store: Store) -> list[bytes]:
    """The bytes of each segment."""
    segments = segments_of(store.manifest, SEGMENT)
    return [b"".join(map(bytes, store.views(segment))) for segment in segments]


def test_a_store_is_one(case: Case) -> None:
    assert isinstance(case.store, Store)
    assert case.store.manifest == MANIFEST
    assert case.store.readers(3) in (1, 2, 3)
    case.store.check_writable()


@pytest.mark.parametrize("order", [sorted(EVERY), sorted(EVERY, reverse=True)])
def test_what_was_written_and_verified_is_read(case: Case, order: list[int]) -> None:
    ledger = ledger_of(case.store)
    lease = ledger.lease(RIGHT.offer)
    for index in order:
        bring(lease, RIGHT, index)
    ledger.release(lease)
    case.store.complete()

    assert ledger.progress.verified == EVERY
    assert blocks(case.store) == blocks(case.again()) == RIGHT.blocks


def test_a_reader_gives_the_bytes_that_views_give(case: Case) -> None:
    fill(case.store, RIGHT)
    read = case.store.reader()

    for segment, block in zip(segments_of(MANIFEST, SEGMENT), RIGHT.blocks, strict=True):
        assert b"".join(bytes(memory_of(read(e))) for e in segment.extents) == block


@pytest.mark.parametrize("brought", [1, 2, 3, 6])
def test_a_new_start_keeps_nothing_of_other_weights(case: Case, brought: int) -> None:
    ledger = ledger_of(case.store)
    first = ledger.lease(RIGHT.offer)
    for index in range(brought):
        bring(first, RIGHT, index)
    ledger.release(first)

    second = ledger.lease(OTHER.offer)
    for index in reversed(range(len(OTHER.blocks))):
        bring(second, OTHER, index)

    assert blocks(case.again()) == OTHER.blocks


def test_a_segment_that_did_not_match_may_come_again(case: Case) -> None:
    ledger = ledger_of(case.store)
    lease = ledger.lease(RIGHT.offer)
    for index in sorted(EVERY):
        with pytest.raises(TransferError, match="does not match"):
            bring(lease, OTHER, index)
        bring(lease, RIGHT, index)

    assert blocks(case.again()) == RIGHT.blocks


def test_a_store_that_is_written_is_read_as_far_as_it_is_verified(case: Case) -> None:
    ledger = ledger_of(case.store)
    lease = ledger.lease(RIGHT.offer)
    held = set[int]()
    for index in (2, 0, 1, 6):
        begun = lease.expect(lease.segments[index])
        for view in begun.views():
            view[:] = b"\xa5" * len(view)
        assert ledger.progress.verified == held, "what is half written is given to nobody"
        with pytest.raises(TransferError):
            begun.update(memoryview(b"\xa5" * begun.segment.nbytes))
        bring(lease, RIGHT, index)
        held.add(index)
        now = blocks(case.store)
        assert ledger.progress.verified == held
        assert [now[i] for i in sorted(held)] == [RIGHT.blocks[i] for i in sorted(held)]


def test_freed_memory_is_an_error_that_names_the_tensor(case: Case) -> None:
    fill(case.store, RIGHT)
    case.free()

    with pytest.raises(TransferError, match="the memory of plain was freed"):
        blocks(case.store)
    with pytest.raises(TransferError, match="the memory of plain was freed"):
        fill(case.store, OTHER)


# -- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", sorted(EVERY))
def test_a_segment_that_was_changed_is_asked_for_again(case: Case, index: int) -> None:
    # Segments 1 and 2 are of one tensor that is put together apart: the one that is still right
    # has to be there when the other one comes, or the tensor would never be whole.
    before = fill(case.store, RIGHT)
    case.spoil(index)
    assert blocks(case.again()) != RIGHT.blocks

    store = case.again()
    ledger = ledger_of(store, before)
    assert ledger.progress.missing() == (index,)
    bring(ledger.lease(RIGHT.offer), RIGHT, index)
    assert ledger.verified_bytes == ledger.total
    assert blocks(case.again()) == RIGHT.blocks


def test_half_a_fill_goes_on(case: Case) -> None:
    ledger = ledger_of(case.store)
    lease = ledger.lease(RIGHT.offer)
    for index in (0, 3, 6):
        bring(lease, RIGHT, index)

    store = case.again()
    held = ledger_of(store, ledger.progress)
    assert held.progress == ledger.progress
    assert held.verified_bytes == 40 + 40 + 36
    assert held.counted_bytes == 0, "no source has sent it in this fill"
    fill(store, RIGHT, ledger.progress)
    assert blocks(case.again()) == RIGHT.blocks


def test_what_goes_on_with_other_weights_begins_anew(case: Case) -> None:
    before = fill(case.store, RIGHT)
    assert fill(case.store, OTHER, before).verified == EVERY

    assert blocks(case.again()) == OTHER.blocks


def test_earlier_progress_counts_before_the_first_lease_only(case: Case) -> None:
    before = fill(case.store, RIGHT)
    ledger = ledger_of(case.store)
    ledger.lease(OTHER.offer)

    with pytest.raises(LocalProtocolError, match="only before the first lease"):
        ledger.resume(before, lambda: False)


@pytest.mark.parametrize(
    "claim",
    [
        Progress(),
        Progress("blake3", SEGMENT, RIGHT.offer.segment_digests[:-1], EVERY),
        Progress("blake3", 2 * SEGMENT, RIGHT.offer.segment_digests, EVERY),
        Progress("blake3", SEGMENT, RIGHT.offer.segment_digests[::-1], EVERY - {3}),
        Progress("md4", SEGMENT, RIGHT.offer.segment_digests, EVERY),
        Progress("blake3", 0, RIGHT.offer.segment_digests, EVERY),
    ],
)
def test_a_claim_that_does_not_fit_counts_for_nothing(case: Case, claim: Progress) -> None:
    fill(case.store, RIGHT)

    assert ledger_of(case.again(), claim).progress == Progress()


def test_nothing_counts_that_was_not_hashed_before_the_call_was_stopped(case: Case) -> None:
    before = fill(case.store, RIGHT)

    ledger = ledger_of(case.again())
    ledger.resume(before, lambda: True)
    assert ledger.progress == Progress()


def test_freed_memory_holds_nothing(case: Case) -> None:
    before = fill(case.store, RIGHT)
    case.free()

    assert ledger_of(case.store, before).progress == Progress()


# -- the end of a folder -------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_whole_and_else_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    store = FileStore.create(folder, MANIFEST)
    fill(store, RIGHT)
    assert not folder.exists()
    store.complete()
    assert [p.name for p in tmp_path.iterdir()] == ["made"]

    for end in (lambda s: s.close(), lambda s: None):
        other = FileStore.create(tmp_path / "other", MANIFEST)
        end(other)
        del other
        gc.collect()
        assert [p.name for p in tmp_path.iterdir()] == ["made"]
