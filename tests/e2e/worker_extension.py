"""What tests bring into engine processes. Imported there only, as `worker_extension_cls`.

vLLM imports that class before it loads a model, in each worker; its methods become methods of the
worker, and can be called by name.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from vllm import LLM, SamplingParams
from vllm.config import replace
from vllm.config.load import LoadConfig
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.lora.request import LoRARequest
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


@register_model_loader("in_step")
class InStep(DefaultModelLoader):  # type: ignore[misc]
    """A load format whose ranks wait for each other, as those that share their reading do."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(replace(load_config, load_format="auto"))

    def load_weights(self, model: Any, model_config: Any) -> None:
        torch.distributed.barrier()
        print(f"in step: rank {torch.distributed.get_rank()}", flush=True)
        super().load_weights(model, model_config)


@dataclass
class Nothing(WeightTransferInitInfo):  # type: ignore[misc]
    """A file needs no connection."""


@dataclass
class Chunk(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Some tensors of a checkpoint."""

    file: str


class FromFile(WeightTransferEngine):  # type: ignore[misc]
    """A trainer that writes its weights into files, in the names of the checkpoint."""

    init_info_cls = Nothing
    update_info_cls = Chunk

    def init_transfer_engine(self, init_info: Nothing) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Chunk, load_weights: Any = None) -> None:
        load = load_weights or self.model.load_weights  # 0.23 begins and ends a reload itself
        load(load_file(update_info.file).items())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass

    @staticmethod
    def trainer_send_weights(*given: Any) -> None:
        """What a trainer calls; vLLM 0.23 demands it."""


WeightTransferEngineFactory.register_engine("file", FromFile)


def _load_model(runner: Any, *args: Any, **kwargs: Any) -> None:
    """What vLLM leaves out: a stage without the draft model is not to look for one."""
    _load_model_as_vllm(runner, *args, **kwargs)
    if not hasattr(runner, "drafter"):
        runner.speculative_config = None


_load_model_as_vllm = CPUModelRunner.load_model
CPUModelRunner.load_model = _load_model


class Inside:
    """More methods for a worker."""

    model_runner: Any

    def make_room_between_stages(self) -> None:
        """Do what an eager CPU worker leaves out, and what a forward over stages needs."""
        runner = self.model_runner
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens,
            dtype=runner.model_config.dtype,
            device=runner.device,
        )

    def generate_adapted(self, adapter: str, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Greedy tokens with a LoRA adapter, of the engine that lives in this process."""
        gc.unfreeze()  # vLLM has frozen itself
        llm = next(thing for thing in gc.get_objects() if isinstance(thing, LLM))
        greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
        request = LoRARequest(Path(adapter).name, 1, adapter)
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = llm.generate(inputs, greedy, use_tqdm=False, lora_request=request)
        return [list(answer.outputs[0].token_ids) for answer in answers]
