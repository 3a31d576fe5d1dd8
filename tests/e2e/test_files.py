"""A real `vllm serve` on a host without any file of its model, started by `netloader run`."""

import json
import sys
from pathlib import Path

import pytest
import torch

from demo.servers import start_server, stop_server, vllm_command, wait_until_healthy
from netloader.config import Endpoint
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description
from netloader.io.describe import ask_status
from netloader.io.options import ClientOptions
from netloader.vllm_plugin.inspect.parity.run import PROMPTS
from tests.e2e.engines import ForkServer
from tests.e2e.source_logs import serving
from tests.support import zoo
from tests.support.ports import free_port
from tests.unit.io.helpers import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

UP_S = 400.0


def offers_hints(source: str) -> bool:
    """Whether a source has warmed up, and offers what it knows."""
    said = ask_status(Endpoint.parse(source), {"role": "hints"}, Manifest(()), ClientOptions())
    return isinstance(said, Description)


def test_an_instance_without_home_cache_and_folder_answers_as_its_source(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = zoo.write(tmp_path / "full", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    (full / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 77]}))
    (full / "modeling.py").write_text("raise SystemExit('the source ran code here')\n")
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    cache.mkdir()
    empty = {
        "HOME": str(home),
        "HF_HOME": str(home / "hub"),
        "XDG_CACHE_HOME": str(cache),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
    }
    log = tmp_path / "client.log"
    theirs = {"VLLM_CACHE_ROOT": str(tmp_path / "theirs")}
    knowing = {"CACHES": True}
    with serving(fork_server, full, tmp_path, extra=knowing, environment=theirs) as (source, at):
        assert eventually(lambda: offers_hints(at[0]), 60)
        port = free_port()
        words = vllm_command(full, port, "netloader", {"LISTEN_HOST": "127.0.0.1"})
        words.remove(str(full))
        words[words.index("--max-model-len") + 1] = "128"
        served = words.index("--served-model-name")
        del words[served : served + 2]
        command = [sys.executable, "-m", "netloader", "run", at[0], "--caches", "--", *words]
        command += ["--skip-tokenizer-init"]
        client = start_server("client", command, port, log, None, empty)
        try:
            wait_until_healthy(client, UP_S)
            tokens = [
                client.post(
                    "/v1/completions",
                    {
                        "model": str(full),
                        "prompt": prompt,
                        "max_tokens": 8,
                        "temperature": 0,
                        "ignore_eos": True,
                        "return_token_ids": True,
                        "detokenize": False,
                    },
                )["choices"][0]["token_ids"]
                for prompt in PROMPTS
            ]
            expected = source.generate()
        finally:
            stop_server(client)
        said = log.read_text()
    assert tokens == expected
    (folder,) = (cache / "netloader" / "files").iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "generation_config.json"], "no weights, and no code"
    assert f", from {at[0]}, verified: {folder}" in said
    assert f"hints from {at[0]}, 1 new file: {cache / 'vllm'}" in said, "vLLM finds them"
    assert "netloader.session.closed" in said
    assert "netloader.source.answers_differ" not in said
