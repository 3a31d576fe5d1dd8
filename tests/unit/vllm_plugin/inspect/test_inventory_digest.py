"""The digest of an inventory: equal for tensors that mean the same, and for no others."""

import pytest
import torch
from torch import Tensor

from netloader.vllm_plugin.inspect.inventory import digest, take
from tests.unit.vllm_plugin.inspect.test_inventory import bare


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([[1.0, 2.0], [3.0, 5.0]]),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64),
        torch.tensor([[1.0, 3.0], [2.0, 4.0]]).t(),
        torch.tensor([1.0, 2.0, 3.0, 4.0]),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], device="meta"),
    ],
    ids=["bytes", "dtype", "stride", "shape", "no memory"],
)
def test_the_digest_tells_tensors_apart(other: Tensor) -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = digest(take(bare(a=tensor, b=tensor.clone(), c=other)))
    assert found["a"] == found["b"] != found["c"]


def test_the_digest_reads_what_a_tensor_means_not_the_memory_around_it() -> None:
    wide = torch.arange(6.0)
    digests = digest(take(bare(view=wide[::2], own=torch.empty(6)[::2].copy_(wide[::2]))))
    assert digests["view"] == digests["own"]


def test_scalars_empty_and_expanded_tensors_have_digests() -> None:
    found = digest(take(bare(a=torch.tensor(1), b=torch.empty(0, 3), c=torch.ones(1).expand(4))))
    assert len(set(found.values())) == 3
