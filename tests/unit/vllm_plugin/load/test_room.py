"""Weights are received where placeholders are, and beside the model where those are gone."""

import pytest
import torch
from torch import nn

from netloader.errors import UnsafeError
from netloader.io.store.module import ModuleStore, Named, manifest_of, named_tensors
from netloader.vllm_plugin.load.room import Room
from tests.unit.vllm_plugin.helpers import Model, post_process

CPU = torch.device("cpu")


def addresses(named: list[Named]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in named}


def room_of(model: nn.Module) -> Room:
    named = named_tensors(model)
    return Room(named, manifest_of(named))


def test_what_kernels_use_is_received_where_it_is_and_the_rest_beside() -> None:
    model = Model()
    manifest = manifest_of(named_tensors(model))
    room = room_of(model)
    post_process(model)
    live = addresses(named_tensors(model))
    named = room.tensors(CPU)
    assert {n for n, at in addresses(named).items() if at == live[n]} == {"norm"}
    assert manifest_of(named) == manifest


def test_reserved_memory_outlives_post_processing() -> None:
    model = Model()
    before = addresses(named_tensors(model))
    room = room_of(model)
    room.reserve()
    post_process(model)
    assert addresses(room.tensors(CPU)) == before
    assert addresses(named_tensors(model)) != before


@pytest.mark.parametrize("reserved", [True, False])
def test_tensors_that_share_memory_share_it_wherever_they_are(reserved: bool) -> None:
    model = nn.Module()
    model.head = model.embed = nn.Parameter(torch.zeros(4, 3), requires_grad=False)
    model.row = nn.Parameter(model.embed.detach()[1], requires_grad=False)
    manifest = manifest_of(named_tensors(model))
    room = room_of(model)
    if reserved:
        room.reserve()
    for name in ("head", "embed", "row"):
        delattr(model, name)
    named = dict(room.tensors(CPU))
    assert manifest_of([*named.items()]) == manifest
    named["row"].fill_(7)
    assert all(named[name][1].tolist() == [7.0] * 3 for name in ("head", "embed") if name in named)


def test_memory_that_was_given_back_is_not_written_to() -> None:
    weight = torch.zeros(8)
    room = Room([("w", weight)], manifest_of([("w", weight)]))
    weight.untyped_storage().resize_(0)
    (name, tensor), *_ = room.tensors(CPU)
    assert ModuleStore([(name, tensor)]).manifest == room.manifest
    assert tensor.untyped_storage().nbytes() == 8 * 4
    assert not weight.untyped_storage().nbytes()


def test_nothing_is_received_where_an_aborted_transfer_may_still_write() -> None:
    room = room_of(Model())
    room.give_up("lane 3 still writes")
    with pytest.raises(UnsafeError, match="lane 3 still writes; restart this instance"):
        room.tensors(CPU)
