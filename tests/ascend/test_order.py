"""vllm-ascend registers a loader under the same name: which one is in force."""

import pytest

from tests.ascend.topology import Cast

ORDERS = {
    "all plugins": ("plugins",),
    "ours, then theirs": ("ours", "theirs"),
    "theirs, then ours": ("theirs", "ours"),
    "their module, then ours": ("their_module", "ours"),
    "ours, then their module": ("ours", "their_module"),
    "plugins twice": ("plugins", "plugins"),
    "theirs, then all plugins": ("theirs", "plugins"),
    "all plugins, then their function": ("plugins", "their_function"),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_ours_is_in_force(cast: Cast, order: tuple[str, ...]) -> None:
    """Ours is behind the load format netloader."""
    registry = cast.early()
    for step in order:
        registry.tell(step)
    assert registry.tell("winner") == "netloader.vllm_plugin.load.loader"


def test_theirs_is_left_out(cast: Cast) -> None:
    """VLLM_PLUGINS without ascend_model_loader: ours, and theirs is not called."""
    registry = cast.early({"VLLM_PLUGINS": "netloader,ascend"})
    registry.tell("plugins")
    assert registry.tell("winner") == "netloader.vllm_plugin.load.loader"
    assert not registry.said("ModelNetLoaderElastic")
