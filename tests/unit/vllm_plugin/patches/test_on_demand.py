"""What a process of vLLM imports of netloader, and when: most of them load no model."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.load import LoadConfig
from vllm.v1.worker.worker_base import WorkerBase

from netloader.vllm_plugin.patches import front, on_demand, worker_methods
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
print("registered", heavy())
loader = get_model_loader(LoadConfig(load_format="netloader"))
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


@pytest.mark.parametrize(
    ("load_format", "extra", "guarded"),
    [
        ("netloader", {"STANDBY": True}, True),
        ("netloader", {"STANDBY": False}, False),
        ("netloader", {}, False),
        ("auto", {"STANDBY": True}, False),
    ],
)
def test_what_takes_requests_is_wrapped_for_an_instance_on_standby_only(
    monkeypatch: pytest.MonkeyPatch, load_format: str, extra: dict[str, object], guarded: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(front, "_guard", lambda: calls.append(1))
    load = LoadConfig(load_format=load_format, model_loader_extra_config=extra)
    config = SimpleNamespace(load_config=load)
    create = on_demand._configured(lambda: config)
    assert create() is config
    assert calls == [1] * guarded
