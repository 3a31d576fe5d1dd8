"""Random hiding places, random updates: a success has the server's answers, whatever happened."""

from collections.abc import Callable
from typing import Final

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

from netloader.io import Deadlines, fill
from tests.unit.io.helpers import IDENTITY, asking, sealed, serving
from tests.unit.io.test_changes import in_place, new_parameter, rebind
from tests.unit.io.test_module_state import HIDING, X

BUILD: Final = {name: build for name, build in HIDING.items() if name != "tensor in extra state"}
PATIENT: Final = Deadlines(20, 20, 20, 20, 40, queue_s=20)


class Chain(nn.Module):
    """Layers that hide weights, tied or in one flat buffer."""

    def __init__(self, kinds: list[str], seed: int, *, flat: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.layers = nn.ModuleList(BUILD[kind](seed) for kind in kinds)
        if flat:
            buffer = torch.cat([p.detach().reshape(-1) for p in self.parameters()])
            at = 0
            for p in self.parameters():
                p.data = buffer[at : at + p.numel()].view_as(p)
                at += p.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.first(x), *(layer(x) for layer in self.layers)])


def everything(model: nn.Module) -> None:
    """Change all that can be reached, by assignment."""
    for layer in model.modules():
        for name in ("place", "packed", "scale"):
            held = getattr(layer, name, None)
            if isinstance(held, torch.Tensor | float):
                setattr(layer, name, held + 1)


def behind_the_counter(model: nn.Module) -> None:
    """Change bytes so that no version counter moves."""
    for parameter in model.parameters():
        parameter.data.add_(1)


def buffers(model: nn.Module) -> None:
    """Change buffers in place."""
    for buffer in model.buffers():
        buffer.add_(1)


def nothing(model: nn.Module) -> None:
    """Change nothing."""


CHANGES: Final[list[Callable[..., None]]] = [
    *(nothing, rebind, in_place, new_parameter, everything, behind_the_counter, buffers)
]


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(list(BUILD)), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from(CHANGES),
)
def test_a_success_has_the_servers_answers(
    kinds: list[str], flat: bool, flat_too: bool, change: Callable[..., None]
) -> None:
    source, target = Chain(kinds, 1, flat=flat), Chain(kinds, 2, flat=flat_too)
    with serving(source) as server:
        sealed(server)
        change(source)
        outcome = fill(target, [server.endpoint], IDENTITY, asking(deadlines=PATIENT))

    event(f"{change.__name__}: {outcome.attempts[-1].reason.value}")
    assert not outcome.ok or torch.equal(source(X), target(X))
    assert outcome.ok or change is behind_the_counter
