"""Modules of any tensors: dense or with holes, small or none, shared, tied, seen in part."""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.unit.io.helpers import bytes_of, random

OLD, SAME, OTHER = range(3)
"""What a target holds before, and two checkpoints."""
DTYPES: Final = (torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.bool)
HOW: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "flat": lambda room: room,
    "transposed": lambda room: room.t(),
    "holes": lambda room: room[:, ::2],
    "holes, transposed": lambda room: room[::2, 1:].t(),
    "expanded": lambda room: room[:, :1].expand(-1, 7),
    "scalar": lambda room: room[0, 0],
    "empty": lambda room: room[:0],
}
VIEWS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "tied": lambda last: last,
    "a part": lambda last: last[len(last) // 2 :] if last.ndim else last,
    "beside": lambda last: last.as_strided(last.shape, last.stride(), 1) if fits(last) else last,
    "a part with holes": lambda last: last[..., ::2] if last.ndim else last,
}
"""Of the tensor before."""


def fits(tensor: Tensor) -> bool:
    """Whether there is room for it one element further on."""
    end = 2 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return 0 < end * tensor.element_size() <= tensor.untyped_storage().nbytes()


class Kind(NamedTuple):
    """One tensor: how it is stored, of what, and how large it is."""

    how: str
    dtype: torch.dtype
    rows: int
    columns: int


kinds = st.builds(
    Kind,
    st.sampled_from([*HOW, *VIEWS, *["holes", "holes, transposed"] * 3]),
    st.sampled_from(DTYPES),
    st.integers(1, 9),
    st.integers(1, 9),
)
Model: TypeAlias = tuple[tuple[Kind, ...], bool]
models: st.SearchStrategy[Model] = st.tuples(
    st.lists(kinds, min_size=2, max_size=6).map(tuple), st.booleans()
)
"""The tensors of a model, and whether they come in the opposite order."""


def build(model: Model, content: int) -> nn.Module:
    """A module with contents of its own."""
    tensors = [torch.empty(0)]
    for number, (how, dtype, rows, columns) in enumerate(model[0]):
        room = random(rows, columns, seed=3 * number + content, dtype=dtype)
        tensors.append(HOW[how](room) if how in HOW else VIEWS[how](tensors[-1]))
    module = nn.Module()
    for number, tensor in enumerate(tensors[:: -1 if model[1] else 1]):
        module.register_buffer(f"t{number}", tensor)
    return module


def memory(module: nn.Module) -> list[bytes]:
    """All that a module's tensors are stored in, holes too."""
    return [bytes_of(_room(t, torch.uint8)) for t in module.buffers()]


def _room(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype).set_(tensor.untyped_storage())


def filled(target: nn.Module, source: nn.Module) -> nn.Module:
    """What becomes of a target: the elements are the source's, and the holes its own."""
    for tensor, elements in zip(target.buffers(), source.buffers(), strict=True):
        room = _room(tensor, tensor.dtype)
        places = torch.arange(len(room)).as_strided(
            tensor.shape, tensor.stride(), tensor.storage_offset()
        )
        room[places] = elements
    return target
