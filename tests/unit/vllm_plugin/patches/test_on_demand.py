"""What a process of vLLM imports of netloader, and when: most of them load no model."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.load import LoadConfig
from vllm.v1.worker.worker_base import WorkerBase

from netloader.errors import ConfigError
from netloader.vllm_plugin.patches import core, front, on_demand, worker_methods
from netloader.vllm_plugin.patches.once import WRAPPED
from netloader.vllm_plugin.serve.worker import Worker, current_worker, running_for

HEAVY = ("netloader.vllm_plugin.load", "netloader.vllm_plugin.serve.worker", "netloader.io")
REGISTERS = f"""
import sys
from netloader.vllm_plugin import register
register()
register()
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
def heavy():
    return sorted({{name for name in {HEAVY!r} if name in sys.modules}})
get_model_loader(LoadConfig(load_format="auto"))
from types import SimpleNamespace
from netloader.vllm_plugin.patches import on_demand
ours = LoadConfig(load_format="netloader", model_loader_extra_config={{"LISTEN_PORT": 19374}})
on_demand._configured(lambda: SimpleNamespace(load_config=ours))()
print("registered", heavy())
loader = get_model_loader(ours)
print(type(loader).__qualname__, heavy())
"""


def test_a_process_that_makes_no_loader_of_ours_imports_neither_loader_nor_driver() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REGISTERS], capture_output=True, text=True, timeout=120, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["registered []", f"NetLoader {sorted(HEAVY)}"]


@pytest.mark.parametrize(
    ("own", "draft", "wrapped"),
    [("netloader", None, True), ("auto", "netloader", True), ("auto", None, False)],
)
def test_a_worker_that_vllm_makes_for_our_format_is_fenced_before_it_loads(
    monkeypatch: pytest.MonkeyPatch, own: str, draft: str | None, wrapped: bool
) -> None:
    def make(worker: Any, load_config: Any, speculative_config: Any) -> None:
        worker.load_config, worker.speculative_config = load_config, speculative_config

    monkeypatch.setattr(WorkerBase, "__init__", make)
    on_demand.install()
    once = WorkerBase.__init__
    on_demand.install()
    assert WorkerBase.__init__ is once
    kind: Any = type("Worker", (WorkerBase,), {"load_model": lambda self: current_worker()})
    drafts = SimpleNamespace(draft_load_config=SimpleNamespace(load_format=draft))

    worker = kind(SimpleNamespace(load_format=own), drafts if draft else None)

    before = current_worker()
    with running_for(Worker()) as another:
        loaded_for = worker.load_model()
        assert current_worker() is another
    assert (loaded_for is worker_methods.worker_of(worker)) is wrapped
    assert current_worker() is before


def test_an_engine_is_guarded_in_its_own_process_where_nothing_is_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's engine loads plugins while it starts; its class is there by then."""
    kind: Any = type("EngineCore", (), {name: lambda _: None for name in core.WRAPPED})
    monkeypatch.setitem(sys.modules, core.MODULE, SimpleNamespace(EngineCore=kind))
    on_demand.install()
    assert all(hasattr(getattr(kind, name), WRAPPED) for name in core.WRAPPED)


def configured(extra: dict[str, Any], load_format: str = "netloader", replicas: int = 1) -> Any:
    """Have vLLM configure an instance in this process."""
    load = LoadConfig(load_format=load_format, model_loader_extra_config=extra)
    parallel = SimpleNamespace(data_parallel_size=replicas)
    config = SimpleNamespace(load_config=load, parallel_config=parallel)
    assert on_demand._configured(lambda: config)() is config


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each time that what takes requests was wrapped."""
    calls: list[int] = []
    monkeypatch.setattr(front, "_guard", lambda: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("load_format", "extra", "guarded"),
    [
        ("netloader", {"STANDBY": True}, True),
        ("NetLoader", {"STANDBY": True}, True),
        ("netloader", {"STANDBY": False}, False),
        ("netloader", {}, False),
        ("auto", {"STANDBY": True}, False),
    ],
)
def test_what_takes_requests_is_wrapped_for_an_instance_on_standby_only(
    guards: list[int], load_format: str, extra: dict[str, object], guarded: bool
) -> None:
    configured(extra, load_format)
    assert guards == [1] * guarded


@pytest.mark.parametrize(
    ("inline", "file", "guarded"),
    [
        ({}, {"STANDBY": True}, True),
        ({"STANDBY": False}, {"STANDBY": True}, True),
        ({"STANDBY": True}, {}, True),
        ({"STANDBY": True}, {"STANDBY": False}, False),
        ({}, {}, False),
    ],
)
def test_the_settings_are_asked_wherever_they_stand(
    guards: list[int], tmp_path: Path, inline: Any, file: Any, guarded: bool
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(file))
    configured({**inline, "CONFIG_FILE": str(path)})
    assert guards == [1] * guarded


def test_settings_that_cannot_be_read_in_this_process_are_refused_with_standby_only(
    guards: list[int],
) -> None:
    gone = {"CONFIG_FILE": "/nowhere/settings.json"}  # it may be on the host of the workers
    configured(gone)
    with pytest.raises(ConfigError, match="CONFIG_FILE"):
        configured({"STANDBY": True, **gone})
    assert not guards


def test_replicas_are_refused_where_vllm_still_knows_of_them(guards: list[int]) -> None:
    """vLLM sets their number to 1 for the workers of a dense model."""
    with pytest.raises(ConfigError, match=r"--data-parallel-size.*start 2 standby instances"):
        configured({"STANDBY": True}, replicas=2)
    configured({}, replicas=2)
    assert not guards


def test_a_front_end_that_passes_every_guard_is_refused(
    guards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    configured({})
    with pytest.raises(ConfigError, match="VLLM_USE_RUST_FRONTEND"):
        configured({"STANDBY": True})
    assert not guards
