"""The engine's end of the conversation, with a vLLM of paper."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from netloader.vllm_plugin.parity import __main__ as command
from netloader.vllm_plugin.parity.engine import Engine, EngineError, attend, erase, holdings
from netloader.vllm_plugin.parity.rows import Row
from netloader.vllm_plugin.parity.run import Case


class Worker:
    """A worker with a target and a draft that share an embedding."""

    def __init__(self) -> None:
        target, draft = nn.Module(), nn.Module()
        target.embed = nn.Embedding(2, 2)
        draft.embed = target.embed
        draft.fc = nn.Linear(2, 2)
        draft.fc.cpu_linear = lambda x, weight, bias: x + 1  # type: ignore[assignment]
        self.target, self.draft = target, draft
        self.model_runner = SimpleNamespace(
            get_model=lambda: target, drafter=SimpleNamespace(model=draft)
        )
        self.reset = 0

    def reset_weights(self) -> None:
        self.reset += 1


class PaperLLM:
    worker = Worker()

    def __init__(self, model: str) -> None:
        if model == "broken":
            raise SystemExit("no such model")
        self.accepted = 10
        self.over: list[str] = []
        config = SimpleNamespace(dtype=torch.bfloat16, quantization=None)
        core = SimpleNamespace(shutdown=lambda: None)
        self.llm_engine = SimpleNamespace(model_config=config, engine_core=core)

    def collective_rpc(self, method: str | Callable[..., Any], args: Any = ()) -> list[Any]:
        found = getattr(self.worker, method) if isinstance(method, str) else method
        return [found(*args) if isinstance(method, str) else found(self.worker, *args)]

    def get_metrics(self) -> list[Any]:
        counter = SimpleNamespace(name="vllm:spec_decode_num_accepted_tokens", value=self.accepted)
        return [counter, SimpleNamespace(name="vllm:a_vector", values=[1])]

    def generate(self, inputs: Any, params: Any, use_tqdm: bool) -> list[Any]:
        self.accepted += 3
        logprobs = [{7: SimpleNamespace(logprob=-0.5)}] * params.max_tokens
        answer = SimpleNamespace(token_ids=[7] * params.max_tokens, logprobs=logprobs)
        return [SimpleNamespace(outputs=[answer]) for _ in inputs]


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("vllm")
    module.LLM = PaperLLM
    module.SamplingParams = lambda **given: SimpleNamespace(**given)
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.fixture
def engine(paper: None, tmp_path: Path) -> Iterator[Engine]:
    ours, its = multiprocessing.Pipe()
    living = Thread(target=attend, args=(its, {"model": "tiny"}))
    living.start()
    engine = Engine(ours, tmp_path / "log", 30)
    engine.greet()
    yield engine
    engine.close()
    living.join()
    its.close()


def test_it_says_what_vllm_resolved(engine: Engine) -> None:
    assert engine.facts == {"dtype": "bfloat16", "quantization": "none"}


def test_it_generates_and_counts_only_the_drafts_of_this_time(engine: Engine) -> None:
    for _ in range(2):
        said = engine.tell(do="generate", prompts=[(1, 2), (3,)], tokens=2)
        assert said == ([[7, 7], [7, 7]], [[-0.5, -0.5], [-0.5, -0.5]], (0, 3))


def test_it_shows_what_every_model_of_every_rank_holds(engine: Engine) -> None:
    (rank,) = engine.tell(do="inventory")
    assert set(rank) == {"target", "draft"}
    assert list(rank["target"].tensors) == ["embed.weight"]
    assert rank == holdings(PaperLLM.worker)


def test_a_failing_command_is_answered_and_the_next_one_is_heard(engine: Engine) -> None:
    with pytest.raises(EngineError, match="AttributeError"):
        engine.tell(do="rpc", method="dance")
    with pytest.raises(EngineError, match="unknown command"):
        engine.tell(do="nothing")
    assert engine.tell(do="rpc", method="reset_weights") == [None]


def test_an_engine_that_does_not_start_says_so(paper: None, tmp_path: Path) -> None:
    ours, its = multiprocessing.Pipe()
    with ours, its:
        attend(its, {"model": "broken"})
        with pytest.raises(EngineError, match="SystemExit: no such model"):
            Engine(ours, tmp_path / "log", 30).greet()


def test_erasing_a_draft_leaves_its_target_alone() -> None:
    worker = Worker()
    before = worker.target.get_parameter("embed.weight").clone()
    erase(worker, "draft")
    assert not worker.draft.get_parameter("fc.weight").any()
    assert not worker.draft.fc.cpu_linear(torch.ones(2), None, None).any()  # type: ignore[operator, union-attr]
    assert worker.target.get_parameter("embed.weight").equal(before)
    erase(worker, "target")
    assert worker.reset == 1


def test_the_command_says_which_engine_did_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arguments: Any, log: Path, patience_s: float) -> Any:
        raise EngineError(f"cannot load {arguments['model']} as {arguments['dtype']}")

    monkeypatch.setattr(command, "own_process", fails)
    assert command.main([str(tmp_path), "--dtype", "float32"]) == 1
    assert f"cannot load {tmp_path} as float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({"noticed": True}, 0),
        ({"noticed": False}, 1),
        ({"tokens": False}, 1),
        ({"refusal": "x"}, 1),
    ],
)
def test_the_command_succeeds_only_when_both_are_identical(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any],
    code: int,
) -> None:
    asked: list[Case] = []

    def examine(case: Case, *_: Any) -> Row:
        asked.append(case)
        return Row(case.model, "bfloat16", "none", "-", differences=("here",), **found)

    monkeypatch.setattr(command, "examine", examine)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda model: str(tmp_path))
    given = ["org/model", "--load-only", "--tensor-parallel-size", "2", "--extra", '{"LANES": 1}']
    assert command.main(given) == code
    assert asked == [Case("org/model", tmp_path, {"tensor_parallel_size": 2}, {"LANES": 1}, 0)]
    assert capsys.readouterr().out.endswith("here\n")
