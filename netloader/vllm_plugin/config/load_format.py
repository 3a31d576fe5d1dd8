"""The name by which vLLM knows netloader, and what is seen of an instance without its settings.

To read the settings takes 0.3 s of imports, which most processes of vLLM do without.
"""

from collections.abc import Mapping
from typing import Any, Final

LOAD_FORMAT: Final = "netloader"
STANDBY: Final = "STANDBY"
"""The field that has an instance wait for its weights."""
MAY_SAY_STANDBY: Final = frozenset({STANDBY, "CONFIG_FILE"})
"""That field, and the one that names a file in which it may stand."""


def is_ours(load_config: Any) -> bool:
    """Whether a load config of vLLM, which may be None, has our load format."""
    return getattr(load_config, "load_format", None) == LOAD_FORMAT


def may_wait(load_config: Any) -> bool:
    """Whether an instance may start on standby; false only where that is certain."""
    if not is_ours(load_config):
        return False
    extra = load_config.model_loader_extra_config
    return isinstance(extra, Mapping) and not MAY_SAY_STANDBY.isdisjoint(extra)
