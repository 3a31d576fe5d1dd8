"""What is left of a first model when a second one is built: nothing, or there is no memory for it.

With vLLM's own model classes and its compilation on, in a process of its own: building a model
needs a world of ranks, and leaves much in the process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import vllm
from vllm.model_executor.layers import rotary_embedding

from netloader.vllm_plugin.patches.registries import Traces
from tests.support.zoo import dense, experts
from tests.support.zoo.checkpoint import Recipe, write

ROOT = Path(__file__).parents[4]
FEW = 40
"""Fewer layers and parameters than any of the models here has."""

CHILD = """
import json, sys, weakref
from dataclasses import replace
from functools import partial
import torch
from vllm.config import CompilationMode, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from netloader.config import Endpoint
from netloader.vllm_plugin.load.loader import NetLoader
from netloader.vllm_plugin.patches.registries import Traces
from tests.unit.vllm_plugin.helpers import plan

folder, meeting = sys.argv[1:]
torch.accelerator.empty_cache = lambda: None  # there is none, and vLLM does not ask
extra = {"FALLBACK": "dummy", "CONNECT_TIMEOUT_S": 1}
config = EngineArgs(
    model=folder, load_format="netloader", model_loader_extra_config=extra, max_model_len=64,
    skip_tokenizer_init=True,
).create_engine_config()
assert config.compilation_config.mode != CompilationMode.NONE
parts, alive = [], []
load_model = BaseModelLoader.load_model

def watched(*given):
    alive.append([type(part()).__name__ for part in parts if part() is not None])
    model = load_model(*given)
    parts.extend(weakref.ref(part) for part in (*model.modules(), *model.parameters()))
    return model

BaseModelLoader.load_model = watched
with set_current_vllm_config(config):
    init_distributed_environment(1, 0, f"file://{meeting}", 0, "gloo")
    ensure_model_parallel_initialized(1, 1)
    spec = plan(layout="processed", sources=(Endpoint("127.0.0.1", 1),))
    loader = NetLoader(config.load_config)
    build = partial(BaseModelLoader.load_model, loader, config, config.model_config)
    model = loader._build(spec, build, Traces(config))
print(json.dumps({"alive": alive, "parts": len(parts)}))
"""


@pytest.mark.skipif(
    not any(Path(vllm.__file__).parent.glob("_C*.so")), reason="this vLLM comes without its kernels"
)
@pytest.mark.parametrize(
    "recipe", [dense.llama(), experts.deepseek_v2()], ids=["llama", "deepseek"]
)
def test_no_part_of_the_first_model_is_left(tmp_path: Path, recipe: Recipe) -> None:
    folder = write(tmp_path / "model", recipe.config, recipe.tensors(1, torch.bfloat16))
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(tmp_path / "meeting")],
        cwd=ROOT,
        env={**os.environ, "VLLM_CONFIGURE_LOGGING": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])

    assert told["alive"] == [[], []]  # before the first model, and before the second
    assert told["parts"] > 2 * FEW


@pytest.fixture
def config() -> Any:
    registered = SimpleNamespace(static_forward_context={}, static_all_moe_layers=["theirs"])
    return SimpleNamespace(compilation_config=registered)


def test_rotary_embeddings_of_other_models_stay(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = object(), object()
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {"theirs": theirs})
    traces = Traces(config)
    rotary_embedding._ROPE_DICT["ours"] = ours

    traces.undo()

    assert {"theirs": theirs} == rotary_embedding._ROPE_DICT


def ascend_adaptor(monkeypatch: pytest.MonkeyPatch, *layers: str) -> list[str]:
    """The registry of vllm-ascend's balancer, in a module that has just been imported."""
    module: Any = ModuleType("vllm_adaptor")
    module.VllmEplbAdaptor = SimpleNamespace(_registered_moe_layers=list(layers))
    monkeypatch.setitem(sys.modules, "vllm_ascend.eplb.adaptor.vllm_adaptor", module)
    registered: list[str] = module.VllmEplbAdaptor._registered_moe_layers
    return registered


def test_layers_that_vllm_ascend_would_balance_go(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = ascend_adaptor(monkeypatch, "of the target")
    traces = Traces(config)
    registered.append("of a draft that failed")

    traces.undo()

    assert registered == ["of the target"]


def test_so_do_those_of_a_module_that_was_imported_for_the_model(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = Traces(config)
    registered = ascend_adaptor(monkeypatch, "of a model that failed")

    traces.undo()

    assert registered == []


def rotary_tables(monkeypatch: pytest.MonkeyPatch, table: object) -> Any:
    """vllm-ascend's module that keeps the rotary tables of the first model, just imported."""
    module: Any = ModuleType("rotary_embedding")
    module._cos_sin_cache = module._cos_cache = module._sin_cache = table
    monkeypatch.setitem(sys.modules, "vllm_ascend.ops.rotary_embedding", module)
    return module


def test_the_next_model_has_rotary_tables_of_its_own(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vllm-ascend keeps the first ones it gets, which a broken transfer may have overwritten."""
    traces = Traces(config)
    module = rotary_tables(monkeypatch, object())

    traces.undo()

    assert [module._cos_sin_cache, module._cos_cache, module._sin_cache] == [None] * 3


def test_rotary_tables_of_an_earlier_model_stay(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = object()
    module = rotary_tables(monkeypatch, theirs)
    traces = Traces(config)
    module._cos_cache = object()

    traces.undo()

    assert module._cos_cache is theirs
