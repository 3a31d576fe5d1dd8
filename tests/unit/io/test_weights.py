"""A model's tensors as manifest and memory: which ones, what they are, and where bytes end."""

import threading
from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor, nn

from netloader.fsm.manifest import Segment, segments_of
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.formats import assign
from netloader.io.memory import memory_of
from netloader.io.store import module as store_module
from netloader.io.store.module import ModuleStore, WeightsError, manifest_of, named_tensors
from tests.unit.io.helpers import KIB, bytes_of, contents, module_of, places, random, zoo

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
    torch.complex64,
    torch.complex128,
)
"""Every dtype whose elements are whole bytes, but complex32, of which torch itself warns."""


def carry(source: nn.Module, target: nn.Module, segment_bytes: int = 64 * KIB) -> None:
    """Move everything between two modules as a transport does, without one."""
    giving, taking = ModuleStore.of(source), ModuleStore.of(target)
    assert giving.manifest == taking.manifest
    for segment in segments_of(giving.manifest, segment_bytes):
        for view, extent in zip(giving.views(segment), segment.extents, strict=True):
            memory_of(taking.place(extent))[:] = view
        taking.arrived(segment)


# -- which tensors -------------------------------------------------------------------------------


def test_parameters_and_persistent_buffers_come_in_model_order() -> None:
    inner = module_of(weight=random(2))
    inner.register_parameter("absent", None)
    inner.register_buffer("unset", None)
    inner.register_buffer("scale", random(1))
    inner.register_buffer("scratch", random(1), persistent=False)
    outer = module_of(first=random(2))
    outer.add_module("inner", inner)

    assert [name for name, _ in named_tensors(outer)] == ["first", "inner.weight", "inner.scale"]


def test_tied_tensors_and_shared_modules_appear_under_each_name_and_travel_once() -> None:
    module = module_of(embed=random(8, 4))
    module.register_parameter("head", module.get_parameter("embed"))
    block = module_of(weight=random(10))
    module.add_module("one", block)
    module.add_module("two", block)

    manifest = ModuleStore.of(module).manifest

    assert [t.name for t in manifest.tensors] == ["embed", "head", "one.weight", "two.weight"]
    assert [manifest.tensors[i].name for i in manifest.payload] == ["embed", "one.weight"]
    assert manifest.nbytes == 8 * 4 * 4 + 10 * 4


def test_a_tensor_without_memory_is_refused_by_name() -> None:
    module = module_of(good=random(2), ghost=torch.empty(3, device="meta"))

    with pytest.raises(WeightsError, match=r"^ghost has no plain memory: it is on the meta"):
        ModuleStore.of(module)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # torch means to drop it
@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.quint8),
        lambda: torch.ones(3, dtype=torch.complex64).conj(),
        lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
    ],
    ids=["sparse", "quantized", "conjugated", "negated"],
)
def test_a_tensor_that_is_not_its_memory_is_refused_by_name(odd: Callable[[], Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"^odd has no plain memory: it is"):
        manifest_of([("odd", odd())])


# -- what the manifest says ----------------------------------------------------------------------


def test_a_tensor_is_described_as_it_lies_in_memory() -> None:
    (spec,) = manifest_of([("w", random(3, 5, dtype=torch.bfloat16).t())]).tensors

    assert (spec.name, spec.dtype, spec.shape) == ("w", "bfloat16", (5, 3))
    assert (spec.stride, spec.nbytes, spec.shares) == ((1, 5), 30, -1)


def test_views_of_one_storage_name_the_first_of_them_and_their_distance() -> None:
    base = random(10, 4)
    manifest = manifest_of([("rows", base[2:4]), ("base", base), ("last", base[9])])

    assert [(t.shares, t.offset) for t in manifest.tensors] == [(-1, 0), (0, -32), (0, 112)]
    assert len(manifest.payload) == 3  # they overlap, yet only equal twins need not travel


def test_empty_tensors_share_nothing() -> None:
    manifest = manifest_of([("a", torch.empty(0)), ("b", torch.empty(0, 7)), ("c", random(1))])

    assert [t.shares for t in manifest.tensors] == [-1, -1, -1]
    assert manifest.payload == (2,)


# -- bytes end where they belong -----------------------------------------------------------------


@pytest.mark.parametrize("segment_bytes", [7, 64 * KIB, 1 << 30])
def test_every_kind_of_tensor_arrives_whole_and_in_place(segment_bytes: int) -> None:
    source, target = zoo(1), zoo(100)
    before = places(target)

    carry(source, target, segment_bytes)

    assert contents(target) == contents(source)
    assert places(target) == before
    assert bytes_of(target.get_buffer("passing")) == bytes_of(source.get_buffer("passing"))


def test_what_lies_between_the_elements_of_a_tensor_with_holes_stays() -> None:
    source, block = random(6, 10, seed=1), random(6, 10, seed=2)
    kept = bytes_of(block[:, 1::2])

    carry(module_of(w=source[:, ::2]), module_of(w=block[:, ::2]))

    assert bytes_of(block[:, ::2]) == bytes_of(source[:, ::2])
    assert bytes_of(block[:, 1::2]) == kept


def test_tied_tensors_stay_tied() -> None:
    source, target = zoo(1), zoo(100)

    carry(source, target)

    assert target.get_parameter("head") is target.get_parameter("embed")
    assert bytes_of(target.get_parameter("head")) == bytes_of(source.get_parameter("embed"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_arrives_bit_by_bit(dtype: torch.dtype) -> None:
    def build(seed: int) -> nn.Module:
        module = nn.Module()
        module.register_buffer("plain", random(5, 9, seed=seed, dtype=dtype))
        module.register_buffer("holes", random(5, 9, seed=seed + 1, dtype=dtype)[:, ::2])
        module.register_buffer("scalar", random(seed=seed + 2, dtype=dtype))
        return module

    source, target = build(1), build(10)
    carry(source, target)

    assert contents(target) == contents(source)


def test_an_expanded_tensor_arrives() -> None:
    # One stored row shown four times: its manifest is sound, so both sides agree to transfer it.
    def build(seed: int) -> nn.Module:
        module = nn.Module()
        module.register_buffer("rows", random(1, 6, seed=seed).expand(4, 6))
        return module

    source, target = build(1), build(2)
    carry(source, target)

    assert contents(target) == contents(source)


def test_a_staged_tensor_is_written_only_when_all_of_it_is_verified() -> None:
    target = module_of(holes=random(100, 10, seed=1)[:, ::2])
    weights = ModuleStore.of(target)
    before = contents(target)
    first, second = segments_of(weights.manifest, 1000)

    memory_of(weights.place(first.extents[0]))[:] = bytes(1000)
    weights.arrived(first)
    assert contents(target) == before

    memory_of(weights.place(second.extents[0]))[:] = bytes(1000)
    weights.arrived(second)
    assert contents(target) == {"holes": bytes(2000)}


def test_a_tensor_that_was_not_assigned_is_staged_again_from_verified_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = (module_of(holes=random(512, 512, seed=s)[:, ::2]) for s in (1, 2))
    giving, taking = ModuleStore.of(source), ModuleStore.of(target)
    first, second = segments_of(giving.manifest, 512 * KIB // 2)
    failures = [TransferError(Reason.TRANSFER_FAILED, "no memory for the cast")]

    def fails_once(*tensors: torch.Tensor) -> None:
        if failures:
            raise failures.pop()
        assign(*tensors)

    monkeypatch.setattr(store_module, "assign", fails_once)

    def receive(segment: Segment) -> None:
        (extent,), (view,) = segment.extents, giving.views(segment)
        memory_of(taking.place(extent))[:] = view
        taking.arrived(segment)

    receive(first)
    with pytest.raises(TransferError):
        receive(second)
    receive(second)  # from the next source, which is asked for nothing else

    assert contents(target) == contents(source)


def test_a_segment_that_must_be_sent_again_does_not_count_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(seed: int) -> nn.Module:
        return module_of(small=random(64, 64, seed=seed)[:, ::2], large=random(99, 99)[:, ::2])

    source, target = build(1), build(2)
    giving, taking = ModuleStore.of(source), ModuleStore.of(target)
    first, second, *_ = segments = segments_of(giving.manifest, 2 * giving.manifest.nbytes // 3)
    assert [len(segment.extents) for segment in segments] == [2, 1]

    def receive(segment: Segment) -> None:
        for extent, view in zip(segment.extents, giving.views(segment), strict=True):
            memory_of(taking.place(extent))[:] = view
        taking.arrived(segment)

    def fails(*_: torch.Tensor) -> None:
        raise TransferError(Reason.TRANSFER_FAILED, "no memory for the cast")

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "assign", fails)
        with pytest.raises(TransferError):
            receive(first)  # with the beginning of `large`
    for extent in first.extents:  # the next source has begun to send it
        memory_of(taking.place(extent))[:] = bytes(extent.length)
    receive(second)  # over another lane
    receive(first)

    assert contents(target) == contents(source)


def test_in_place_targets_are_the_tensors_own_memory() -> None:
    tensor = random(30, 70).t()
    (segment,) = segments_of(manifest_of([("w", tensor)]), 1 << 20)
    weights = ModuleStore([("w", tensor)])

    assert weights.place(segment.extents[0]).data_ptr() == tensor.data_ptr()
    assert weights.reader()(segment.extents[0]).data_ptr() == tensor.data_ptr()


def test_parameters_that_require_gradients_are_written_without_one() -> None:
    target = nn.Linear(3, 4)
    carry(nn.Linear(3, 4), target)

    assert target.weight.requires_grad
    assert target.weight.grad_fn is None


def test_memory_keeps_its_tensor_alive() -> None:
    def view() -> memoryview:
        return memory_of(torch.full((1 << 16,), 7, dtype=torch.uint8))

    held = [view() for _ in range(8)]
    scratch: list[Tensor] = [torch.zeros(1 << 16, dtype=torch.uint8) for _ in range(8)]

    assert all(set(view) == {7} for view in held)
    assert len(scratch) == 8


def test_reading_many_tensors_is_not_slow_beside_a_busy_thread() -> None:
    # A torch operation gives up the interpreter lock, and a busy thread gives it back after 5 ms.
    weights = ModuleStore.of(module_of(**{f"t{i}": random(16, seed=i) for i in range(2000)}))
    (segment,) = segments_of(weights.manifest, 1 << 20)

    def seconds() -> float:
        start = monotonic()
        assert sum(map(len, weights.views(segment))) == weights.manifest.nbytes
        return monotonic() - start

    seconds()
    alone = min(seconds() for _ in range(5))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: all(not stop.is_set() for _ in count()))
    thread.start()
    beside = min(seconds() for _ in range(5))
    stop.set()
    thread.join()

    print(f"{alone * 1e3:.1f} ms alone, {beside * 1e3:.1f} ms beside a busy thread")
    assert beside < 20 * alone
