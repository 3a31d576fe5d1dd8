"""What all tests share: how long Hypothesis searches, and the log as a list."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import Phase, settings

from netloader.log import capture

# No profile has a deadline per example: two shared cores make wall-clock limits flaky.
settings.register_profile("dev", max_examples=100, deadline=None)
settings.register_profile("ci", settings.get_profile("ci"), max_examples=300, deadline=None)
settings.register_profile(
    "quick", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate)
)
settings.register_profile("nightly", max_examples=5000, deadline=None, stateful_step_count=80)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture
def captured() -> Iterator[list[dict[str, Any]]]:
    """Every line our loggers write during the test, as dicts, at every level."""
    with capture() as lines:
        yield lines
