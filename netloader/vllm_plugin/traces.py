"""What building a model leaves in vLLM's configs: layer names, which may come only once."""

from vllm.config import VllmConfig


class Traces:
    """The names that were taken before a model was built."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        compilation = vllm_config.compilation_config
        self._layers = compilation.static_forward_context
        self._experts = compilation.static_all_moe_layers
        self._before = (dict(self._layers), list(self._experts))

    def undo(self) -> None:
        """As if nothing had been built since."""
        layers, experts = self._before
        self._layers.clear()
        self._layers.update(layers)
        self._experts[:] = experts
