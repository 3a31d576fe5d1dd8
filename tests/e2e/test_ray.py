"""The examples in deploy/ray: actors of a real cluster find, and fill from, each other."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import zoo
from tests.support.bucket import bucket
from tests.support.ray_cluster import ROOT, ray_module

pytestmark = pytest.mark.timeout(600)
LONG_S = 540.0


def said(program: str, *arguments: str) -> list[str]:
    """What a program prints, line by line."""
    with ray_module():
        ran = subprocess.run(
            [sys.executable, str(ROOT / program), *arguments],
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.splitlines()


def test_the_first_actor_reads_the_file_and_the_others_fill_from_those_that_live() -> None:
    first, second, third, killed, fourth = said("deploy/ray/fleet.py")

    digest = re.fullmatch(r"a: weights ([0-9a-f]{16}) from the file", first)
    assert digest
    assert second == f"b: weights {digest[1]} from a"
    assert re.fullmatch(f"c: weights {digest[1]} from [ab]", third)
    assert killed == "a is killed, and the file is gone"
    assert re.fullmatch(f"d: weights {digest[1]} from [bc]", fourth)


@pytest.mark.engine
def test_an_engine_without_weight_files_starts_from_one_in_another_actor(tmp_path: Path) -> None:
    model = zoo.write(tmp_path / "m", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))

    first, second = said("deploy/ray/engines.py", str(model))

    assert first.startswith("first: weights read, [")
    assert second == first.replace("first: weights read", "second: weights received")


def test_ray_serve_llm_downloads_no_weights_where_a_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = ["config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json"]
    weights = "model-00001-of-00001.safetensors"
    everything = ["NodeModelDownloadable.MODEL_AND_TOKENIZER", sorted([weights, *rest])]
    with bucket({f"llm/{name}": b"{}" for name in [*rest, weights]}) as (url, read):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        *_, line = said("tests/e2e/ray_serve_probe.py", "ray://llm/servers")

    found = json.loads(line)
    assert found["plain"] == everything, "Ray looks at its own load formats only"
    assert found["nobody"] == everything, "the first replica needs them"
    assert found["somebody"] == ["NodeModelDownloadable.EXCLUDE_SAFETENSORS", rest]
    assert read.count(f"llm/{weights}") == 2
