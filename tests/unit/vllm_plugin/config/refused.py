"""What the reader of the extra config refuses."""

from typing import Any

import pytest

from netloader.errors import ConfigError
from netloader.vllm_plugin.config.settings import Settings

PLANTED = "hunter2-hunter2-hunter2"
"""A secret, which no message may have."""


def problems_of(extra: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        Settings.parse(extra)
    return caught.value.problems


def in_a_list(source: str) -> dict[str, object]:
    return {"SOURCE": [{"device_id": 0, "sources": [source]}]}
