"""Fields of the extra config that are for the ordinary loader."""

from typing import Any

import pytest
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from netloader.errors import ConfigError
from netloader.vllm_plugin.config.readers import Fallback
from netloader.vllm_plugin.config.settings import (
    Settings,
)

TUNED: dict[str, Any] = {
    "enable_multithread_load": True,
    "num_threads": 16,
    "enable_weights_track": False,
}


def test_what_is_given_for_the_ordinary_loader_is_handed_on_to_it() -> None:
    settings = Settings.parse({"SOURCE": [], **TUNED})
    assert settings.fallback == Fallback("auto", TUNED)
    assert settings.fallback is not None
    DefaultModelLoader(
        LoadConfig(load_format="auto", model_loader_extra_config=dict(settings.fallback.extra))
    )


def test_what_fallback_itself_says_of_its_loader_wins() -> None:
    own = {"load_format": "auto", "model_loader_extra_config": {"num_threads": 2}}
    settings = Settings.parse({"FALLBACK": own, "num_threads": 16, "enable_weights_track": None})
    assert settings.fallback == Fallback("auto", {"num_threads": 2})


def test_without_a_loader_that_takes_over_it_is_accepted_and_unused() -> None:
    assert Settings.parse({"FALLBACK": "never", **TUNED}).fallback is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"enable_multithread_load": "yes"}, "enable_multithread_load: 'yes' cannot be used; give"),
        ({"num_threads": 0}, "num_threads: 0 cannot be used; give"),
        ({"enable_weights_track": 1}, "enable_weights_track: 1 cannot be used; give true or false"),
    ],
)
def test_what_the_ordinary_loader_would_refuse_is_refused_at_once(
    given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.parse(given)
    assert problem in str(caught.value)
