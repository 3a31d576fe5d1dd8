"""Tests of tensors on a GPU: skipped, each by name, where there are too few."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _gpus(request: pytest.FixtureRequest) -> None:
    """Skip a test that needs more GPUs than are here."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    needed = 2 if request.node.get_closest_marker("two_gpus") else 1
    if found < needed:
        pytest.skip(f"needs {needed} CUDA devices, and {found} are here")
