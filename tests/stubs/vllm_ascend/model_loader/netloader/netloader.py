"""Another loader under our name."""

from torch import nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from vllm_ascend import DONE

DONE.append("registered")


@register_model_loader("netloader")
class ModelNetLoaderElastic(BaseModelLoader):  # type: ignore[misc]
    def download_model(self, model_config: ModelConfig) -> None:
        raise NotImplementedError

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        raise NotImplementedError
