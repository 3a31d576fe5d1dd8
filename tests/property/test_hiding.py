"""Random hiding places, random updates: a success has the server's answers, whatever happened."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Final

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

from netloader.fsm.reasons import Reason
from netloader.io import Deadlines, fill
from netloader.io.transports.tcp import TcpSender
from tests.unit.io.helpers import IDENTITY, asking, sealed, serving
from tests.unit.io.test_changes import in_place, new_parameter, rebind
from tests.unit.io.test_module_state import HIDING, X

BUILD: Final = {name: build for name, build in HIDING.items() if name != "tensor in extra state"}
PATIENT: Final = Deadlines(20, 20, 20, 20, 40, queue_s=20)


class Chain(nn.Module):
    """Layers that hide weights; two that may be tied; parameters that may be one flat buffer."""

    def __init__(self, kinds: list[str], seed: int, *, tied: bool, flat: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        if tied:
            self.last.weight = self.first.weight
        self.layers = nn.ModuleList(BUILD[kind](seed) for kind in kinds)
        if flat:
            buffer = torch.cat([p.detach().reshape(-1) for p in self.parameters()])
            at = 0
            for p in self.parameters():
                p.data = buffer[at : at + p.numel()].view_as(p)
                at += p.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.last(self.first(x)), *(layer(x) for layer in self.layers)])


def assigned(model: nn.Module) -> None:
    """Load other tensors, which take the place of those that are there."""
    state = {k: v + 1 if isinstance(v, torch.Tensor) else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def removed(model: Chain) -> None:
    """Remove a parameter."""
    model.first.register_parameter("bias", None)


def averaged(model: nn.Module) -> None:
    """Swap parameters for their moving averages, as one does for an evaluation."""
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5


def averaged_and_back(model: nn.Module) -> None:
    """Swap them, and swap them back."""
    kept = [parameter.data for parameter in model.parameters()]
    averaged(model)
    for parameter, data in zip(model.parameters(), kept, strict=True):
        parameter.data = data


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
    *(nothing, rebind, in_place, new_parameter, everything, behind_the_counter, buffers),
    *(assigned, removed, averaged, averaged_and_back),
]
UNTIED: Final = (removed, assigned, new_parameter)
"""After these the server's model may lack a parameter, or a tie, that the client's has."""
Moment = Enum("Moment", ["BEFORE", "OFFERED", "SENT"])


@contextmanager
def happening(moment: Moment, change: Callable[[], None]) -> Iterator[None]:
    """A change before a client comes, after it had its offer, or after all bytes were sent."""
    run, left = TcpSender.run, [change]

    def run_and_change(self: TcpSender, *args: Any) -> int:
        if left and moment is Moment.OFFERED:
            left.pop()()
        sent = run(self, *args)
        if left:
            left.pop()()
        return sent

    if moment is Moment.BEFORE:
        left.pop()()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TcpSender, "run", run_and_change)
        yield


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(list(BUILD)), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(CHANGES),
    st.sampled_from(Moment),
)
def test_a_success_has_the_servers_answers(
    kinds: list[str],
    tied: bool,
    flat: bool,
    flat_too: bool,
    change: Callable[..., None],
    moment: Moment,
) -> None:
    source = Chain(kinds, 1, tied=tied, flat=flat)
    target = Chain(kinds, 2, tied=tied, flat=flat_too)
    before = source(X)
    with serving(source) as server, happening(moment, partial(change, source)):
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking(deadlines=PATIENT))

    event(f"{change.__name__}, {moment.name}: {outcome.attempts[-1].reason.value}")
    unseen = change is behind_the_counter and moment is Moment.SENT
    if outcome.ok:
        assert torch.equal(target(X), before if unseen else source(X))
        return
    match outcome.attempts[-1].reason:
        case Reason.MANIFEST_MISMATCH:
            assert change in UNTIED
        case Reason.DIGEST_MISMATCH:
            assert moment is Moment.OFFERED or change is behind_the_counter
        case reason:
            pytest.fail(f"{reason}: {outcome.history()}")
