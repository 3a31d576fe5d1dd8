"""vLLM engines in actors of a Ray cluster: `python deploy/ray/engines.py MODEL_FOLDER`.

The second engine has no weight files. Both know only the name of a registry, and answer a prompt of
token ids, so that no tokenizer is needed. Runs on a CPU; needs vLLM and `vllm-netloader[ray]`.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

EXTRA = {"SOURCE": "ray://fleet/servers", "MODEL": "llm", "LISTEN_HOST": "127.0.0.1"}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the actor's process: part of the cluster
    "VLLM_HOST_IP": "127.0.0.1",
}
PROMPT = [1, 5, 9, 2, 7]


@ray.remote(num_cpus=1)
class Engine:
    """One engine, of one rank."""

    def __init__(self, folder: str, log: str, options: dict[str, Any]) -> None:
        os.environ.update(ENVIRONMENT)
        from vllm import LLM

        self._llm = LLM(
            folder,
            load_format="netloader",
            model_loader_extra_config={**EXTRA, "LOG_JSON": log},
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=64,
            kv_cache_memory_bytes=32 << 20,
            **options,
        )

    def answer(self) -> list[int]:
        """Eight tokens, the most probable ones."""
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
        (said,) = self._llm.generate({"prompt_token_ids": PROMPT}, greedy, use_tqdm=False)
        return list(said.outputs[0].token_ids)


def main(model: Path) -> int:
    """Start one engine, then one without weight files."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare")
        shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        answers, engines = [], []
        for name, files in (("first", model), ("second", bare)):
            log = Path(folder, f"{name}.json")
            engines.append(Engine.remote(str(files), str(log), {}))
            answers.append(ray.get(engines[-1].answer.remote()))
            loaded = "received" if "netloader.loader.received" in log.read_text() else "read"
            print(f"{name}: weights {loaded}, {answers[-1]}", flush=True)
        ray.kill(ray.get_actor("servers", "fleet"))
        ray.shutdown()
    return 0 if answers[0] == answers[1] else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
