"""Headers of safetensors files. A damaged one is refused with the file's name and the cause.

The format: 8 bytes with the length of the header (little endian), the header as JSON, the bytes of
all tensors without gaps (https://github.com/huggingface/safetensors).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

import msgspec
import torch

from netloader.errors import WeightsError
from netloader.fsm.manifest import TensorSpec
from netloader.io.tensors import is_dense
from netloader.wire.frames import sendable

DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F8_E8M0": torch.float8_e8m0fnu,
        "C64": torch.complex64,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""The format's names of torch's dtypes."""
LENGTH_BYTES: Final = 8
MOST_BYTES: Final = 100_000_000
"""The longest header that the format allows."""
ABOUT: Final = "__metadata__"
"""The only key of a header that does not name a tensor."""


def name_of(dtype: str) -> str | None:
    """The format's name of a dtype as manifests spell it; None for one that it has no name for."""
    return next((name for name, known in DTYPES.items() if str(known) == f"torch.{dtype}"), None)


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One tensor, as the header has it."""

    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor, and where its bytes begin in the file."""

    spec: TensorSpec
    begin: int


def read_header(path: Path, data: memoryview) -> list[Placed]:
    """The tensors of a file, in the order of their bytes. `data` is the whole file.

    Raises:
        WeightsError: the file is damaged, or has a tensor of a dtype that is not known.
    """
    try:
        return _read(data)
    except _DamagedError as error:
        remedy = "write or download it again"
        raise WeightsError(f"{path} is no safetensors file: {error}; {remedy}") from error
    except _UnknownDtypeError as error:
        known = ", ".join(DTYPES)
        raise WeightsError(f"{path}: {error}; netloader knows {known}") from error


class _DamagedError(Exception):
    """A file is not what the format says."""


class _UnknownDtypeError(Exception):
    """A dtype has no counterpart in torch."""


def _read(data: memoryview) -> list[Placed]:
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    begin = LENGTH_BYTES + length
    if len(data) < LENGTH_BYTES or length > MOST_BYTES or begin > len(data):
        raise _DamagedError(f"of its {len(data)} bytes, {length} would be the header")
    try:
        table = json.loads(bytes(data[LENGTH_BYTES:begin]))
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"its header is no JSON ({error})") from error
    if not isinstance(table, dict):
        raise _DamagedError("its header is no table of tensors")
    table.pop(ABOUT, None)
    found = [(name, *_checked(name, entry)) for name, entry in table.items()]
    return _without_gaps(sorted(found, key=lambda row: row[2].data_offsets), begin, len(data))


def _checked(name: str, entry: object) -> tuple[torch.dtype, _Entry]:
    try:
        known = msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        raise _DamagedError(f"the entry of {name!r} is malformed ({error})") from error
    if known.dtype not in DTYPES:
        raise _UnknownDtypeError(f"{name!r} is of the unknown dtype {known.dtype!r}")
    return DTYPES[known.dtype], known


def _without_gaps(
    rows: Iterable[tuple[str, torch.dtype, _Entry]], begin: int, size: int
) -> list[Placed]:
    found: list[Placed] = []
    reached = 0
    for name, dtype, entry in rows:
        start, end = entry.data_offsets
        nbytes = prod(entry.shape) * dtype.itemsize
        if start != reached or end - start != nbytes:
            where = f"its bytes are said to be {start} to {end}"
            raise _DamagedError(f"{name!r} has {nbytes} bytes and begins at {reached}, but {where}")
        reached = end
        try:
            spec = spec_of(name, dtype, entry.shape)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise _DamagedError(f"{name!r} has a shape that no tensor has") from error
        found.append(Placed(spec, begin + start))
    if begin + reached != size:
        raise _DamagedError(f"its tensors end at byte {begin + reached}, the file at {size}")
    return found


def spec_of(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
    """A contiguous tensor."""
    return TensorSpec(
        name=sendable(name),
        dtype=str(dtype).removeprefix("torch."),
        shape=shape,
        stride=torch.empty(shape, dtype=dtype, device="meta").stride(),
        nbytes=prod(shape) * dtype.itemsize,
    )


def in_order(spec: TensorSpec) -> bool:
    """Whether the wire has the elements of a tensor in the order in which a file has them.

    It has those of a dense tensor in the order of memory, and all others in that of the shape.
    """
    like = torch.empty_strided(
        spec.shape, spec.stride, dtype=getattr(torch, spec.dtype), device="meta"
    )
    return like.is_contiguous() or not is_dense(like)


def write_header(specs: Iterable[TensorSpec]) -> tuple[bytes, list[Placed]]:
    """The header of a file with these tensors, and where each is in it.

    Wide elements come first, so that each tensor begins at a multiple of its element's size.
    """
    rows = sorted(specs, key=lambda spec: -getattr(torch, spec.dtype).itemsize)
    table: dict[str, object] = {ABOUT: {"format": "pt"}}
    begins: list[int] = []
    reached = 0
    for spec in rows:
        offsets = [reached, reached + spec.nbytes]
        table[spec.name] = {
            "dtype": name_of(spec.dtype),
            "shape": spec.shape,
            "data_offsets": offsets,
        }
        begins.append(reached)
        reached += spec.nbytes
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    header = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return header, [
        Placed(spec, len(header) + begin) for spec, begin in zip(rows, begins, strict=True)
    ]
