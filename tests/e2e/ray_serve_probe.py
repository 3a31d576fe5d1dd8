"""What Ray Serve LLM downloads before it starts an engine: `python ray_serve_probe.py REGISTRY`.

Its own functions are called, with a cluster and a bucket of this machine. Prints one JSON object:
the decision and the files that were downloaded, without a callback, with one while the registry is
empty, and with one when a server is there.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray.llm._internal.serve.utils.node_initialization_utils import initialize_node
from ray.serve.llm import LLMConfig

from netloader.config import Endpoint
from netloader.discovery.base import Candidate, Key
from netloader.discovery.urls import registry_of

BUCKET = "pyarrow-s3://anonymous@bucket/llm"


def downloaded(name: str, more: dict[str, Any]) -> tuple[str, list[str]]:
    """The decision for a model, and its files on this node."""
    config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": BUCKET},
        engine_kwargs={"load_format": "netloader"},
        accelerator_config={"kind": "cpu"},
        **more,
    )

    async def start() -> str:
        """As the engine does, see VLLMEngine.start."""
        callback = config.get_or_create_callback()
        await callback.run_callback("on_before_node_init")
        await initialize_node(config)
        return str(callback.ctx.worker_node_download_model)

    decision = asyncio.run(start())
    folder = Path(config.get_engine_config().actual_hf_model_id)
    return decision, sorted(path.name for path in folder.rglob("*") if path.is_file())


def main(registry: str) -> None:
    """Ask in the three cases."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    callback = {
        "callback_class": "netloader.vllm_plugin.ray_serve.WithoutWeights",
        "callback_kwargs": {"registry": registry},
    }
    said = {"plain": downloaded("a", {})}
    said["nobody"] = downloaded("b", {"callback_config": callback})
    registry_of(registry).put(Key("llm", "0"), Candidate(Endpoint("10.0.0.1", 1)), 600, 60.0)
    said["somebody"] = downloaded("c", {"callback_config": callback})
    print(json.dumps(said))
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
