"""Which instances start on standby, and which never could.

Every process of an instance asks here: those that take requests, and the workers.
"""

from collections.abc import Iterator

from vllm import envs
from vllm.config import VllmConfig
from vllm.config.load import LoadConfig

from netloader.errors import ConfigError
from netloader.vllm_plugin.config.checks import settings_of
from netloader.vllm_plugin.config.load_format import may_wait
from netloader.vllm_plugin.config.settings import Settings

START = "start this instance without STANDBY"


def standby_of(load_config: LoadConfig) -> Settings | None:
    """The settings of an instance that starts on standby; None for any other.

    Raises:
        ConfigError: the settings cannot be used, or a file of theirs cannot be read any more.
    """
    if not may_wait(load_config):
        return None
    settings = settings_of(load_config)
    return settings if settings.standby else None


def check(vllm_config: VllmConfig) -> None:
    """Refuse an instance on standby that clients would reach before it has its weights.

    Raises:
        ConfigError: it is one.
    """
    if problems := [f"STANDBY: {problem}" for problem in _problems(vllm_config)]:
        raise ConfigError(problems)


def _problems(vllm_config: VllmConfig) -> Iterator[str]:
    replicas = vllm_config.parallel_config.data_parallel_size
    if replicas > 1:
        yield (
            f"--data-parallel-size (or VLLM_DP_SIZE) is {replicas}, and vLLM hands on the answer "
            f"of the first replica only, so the others would answer from placeholders; start "
            f"{replicas} standby instances without --data-parallel options, or {START}"
        )
    if getattr(envs, "VLLM_USE_RUST_FRONTEND", False):
        yield (
            "VLLM_USE_RUST_FRONTEND is set, and that front end does not ask whether there are "
            f"weights, nor can it be told to fill the instance; unset it, or {START}"
        )
