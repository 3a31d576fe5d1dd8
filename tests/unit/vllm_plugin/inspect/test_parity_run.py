"""One case from start to row, with engines of paper; the conversation with one; the command."""

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from netloader.vllm_plugin.inspect.parity.__main__ import main
from netloader.vllm_plugin.inspect.parity.controls import shift
from netloader.vllm_plugin.inspect.parity.engine import Engine, EngineError
from netloader.vllm_plugin.inspect.parity.rows import Held, Said, Seen
from netloader.vllm_plugin.inspect.parity.run import Case, examine, without_weights

HELD = Held(
    {"a.weight": "d1", "b": "d2"},
    {"scale": 1.0},
    {"a.cpu_linear(handler)": "Handle"},
    {"a.cpu_linear(handler)": "Handle"},
)
SAID = Said(("generate (tokens)",), [[1, 2]], [[-0.5, -0.25]])
SHOWN = Seen([{"target": HELD}], SAID)


class Stage:
    """Engines that exist on paper: the first one serves, the second one receives."""

    offer = (
        "INFO x] netloader.server.offered netloader.layout=raw netloader.raw_bytes=100 "
        'netloader.cached_bytes=7 netloader.note="a b"\n'
    )

    def __init__(self, server_log: str = offer, failure: str = "", client: Seen | None = None):
        self.server_log, self.failure = server_log, failure
        self.client = client or SHOWN
        self.erased, self.shifted = False, 0
        self.models: list[tuple[Path, Mapping[str, Any], Mapping[str, Any]]] = []

    @contextlib.contextmanager
    def start(
        self, model: Path, extra: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Iterator[Engine]:
        self.models.append((model, extra, options))
        serves = "SOURCE" not in extra
        if serves and "offered" in self.server_log:
            for rank in range(options.get("tensor_parallel_size", 1)):
                Path(f"{extra['OUTPUT_PREFIX']}{rank}.txt").write_text(f"127.0.0.1:{4000 + rank}")
        if not serves and self.failure:
            raise EngineError(self.failure)
        yield Paper(self, serves)

    def falsify(self, method: Any, args: Any) -> None:
        if method is shift:
            self.shifted += args[1]
        else:
            self.erased = True


class Paper(Engine):
    def __init__(self, stage: Stage, serves: bool) -> None:
        self.stage, self.serves = stage, serves
        self.facts = {"dtype": "bfloat16", "quantization": "none"}

    def tell(self, **command: Any) -> Any:
        shows = SHOWN if self.serves else self.stage.client
        match command["do"]:
            case "inventory":
                return shows.held
            case "ask":
                falsified = self.stage.erased or self.stage.shifted
                return replace(shows.said, tokens=[[0, 0]]) if falsified else shows.said
            case "rpc":
                self.stage.falsify(command["method"], command["args"])
        return None

    def log(self) -> str:
        return self.stage.server_log


@pytest.fixture
def case(tmp_path: Path) -> Case:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        (folder / name).write_text("{}")
    return Case("m", folder)


def test_a_case_becomes_a_row(case: Case, tmp_path: Path) -> None:
    stage = Stage()
    found = examine(case, stage.start, tmp_path)
    assert (found.layout, found.nbytes, found.cached) == ("raw", 100, 7)
    assert (found.oracle, found.verdict) == ("tokens", "identical")
    assert found.controls == ("a (answers)", "b (answers)", "the whole target (tokens)")
    assert stage.shifted == 0
    (_, served, _), (bare, received, _) = stage.models
    assert [file.name for file in bare.iterdir()] == ["config.json"]
    assert received["SOURCE"] == [{"device_id": 0, "sources": ["127.0.0.1:4000"]}]
    assert received["FALLBACK"] == "never"
    assert served["MODEL"] == received["MODEL"]


def test_other_tokens_make_the_row_wrong(case: Case, tmp_path: Path) -> None:
    stage = Stage(client=replace(SHOWN, said=replace(SAID, tokens=[[9, 9]])))
    assert examine(case, stage.start, tmp_path).verdict == "WRONG"


def test_each_rank_has_its_own_source_and_a_draft_loses_its_weights_too(
    case: Case, tmp_path: Path
) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "model.safetensors").write_text("")
    speculative = {"method": "eagle", "model": str(draft)}
    options = {"tensor_parallel_size": 2, "speculative_config": speculative}
    stage = Stage()
    found = examine(replace(case, options=options), stage.start, tmp_path)
    assert found.partition == "TP 2"
    _, received, given = stage.models[1]
    assert [source["device_id"] for source in received["SOURCE"]] == [0, 1]
    assert list(Path(given["speculative_config"]["model"]).iterdir()) == []
    assert speculative["model"] == str(draft)


def test_a_server_that_offers_nothing_is_a_refusal_with_its_reason(
    case: Case, tmp_path: Path
) -> None:
    log = 'netloader.server.refused netloader.detail="8 parameters \\"went\\"" x=y\n'
    found = examine(case, Stage(server_log=log).start, tmp_path)
    assert found.verdict == "refused"
    assert found.refusal.startswith("8 parameters")


def test_a_client_that_refuses_is_a_refusal_and_one_that_breaks_is_not(
    case: Case, tmp_path: Path
) -> None:
    why = "NoWeightsError: FALLBACK is never, and no source delivered: [::1]:80: config differs"
    refused = Stage(failure=f"RuntimeError\n(Worker) {why}\n")
    assert examine(case, refused.start, tmp_path).refusal == "config differs"
    with pytest.raises(EngineError, match="Segmentation"):
        examine(case, Stage(failure="Segmentation fault").start, tmp_path)


def test_a_client_may_have_a_folder_of_its_own(case: Case, tmp_path: Path) -> None:
    stage = Stage()
    examine(replace(case, client=tmp_path / "own"), stage.start, tmp_path)
    assert stage.models[1][0] == tmp_path / "own"


def test_a_folder_without_weights_keeps_everything_else(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    kept = {"config.json", "tokenizer.json", "tokenizer.model"}
    gone = {"a-1.safetensors", "a.safetensors.index.json", "b.bin", "c.pth", "d.gguf"}
    for name in kept | gone:
        (folder / name).write_text(name)
    assert {file.name for file in without_weights(folder, tmp_path / "bare").iterdir()} == kept


def test_weights_below_a_folder_are_the_clients_too(tmp_path: Path) -> None:
    """vLLM reads the Dense module of a Sentence-Transformers folder itself."""
    folder = tmp_path / "full"
    (folder / "2_Dense").mkdir(parents=True)
    for name in ("2_Dense/config.json", "2_Dense/model.safetensors", "model.safetensors"):
        (folder / name).write_text(name)
    bare = without_weights(folder, tmp_path / "bare")
    assert (bare / "2_Dense" / "model.safetensors").read_text() == "2_Dense/model.safetensors"
    assert (bare / "2_Dense" / "config.json").read_text() == "2_Dense/config.json"
    assert not (bare / "model.safetensors").exists()


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    ours, its = multiprocessing.Pipe()
    with ours, its:
        yield ours, its


def test_an_engine_answers_or_says_why_not(
    pair: tuple[Connection, Connection], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("the end of the log")
    engine = Engine(pair[0], log, 30)
    for answer in ({"dtype": "x"}, 5, {"error": "no"}):
        pair[1].send(answer)
    engine.greet()
    assert engine.facts == {"dtype": "x"}
    assert engine.tell(do="count") == 5
    with pytest.raises(EngineError, match="no\nthe end of the log"):
        engine.tell(do="fail")
    assert pair[1].recv() == {"do": "count"}


@pytest.mark.parametrize(("gone", "said"), [(True, "gone"), (False, "in time")])
def test_an_engine_that_is_gone_or_silent(
    pair: tuple[Connection, Connection], tmp_path: Path, gone: bool, said: str
) -> None:
    if gone:
        pair[1].close()
    with pytest.raises(EngineError, match=said):
        Engine(pair[0], tmp_path / "none", 0).answer()


def test_the_command_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "--speculative-config" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [("[1]", "'[1]' is no JSON object"), ("{", "'{' is no JSON: ")],
)
def test_an_option_that_is_no_json_object_is_named(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["model", "--engine", given])
    assert said in capsys.readouterr().err


def test_a_client_folder_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--client-folder '.*none' is no folder here"):
        main([str(tmp_path), "--client-folder", str(tmp_path / "none")])


def test_a_model_that_is_nowhere_is_named_in_one_line() -> None:
    with pytest.raises(SystemExit, match=r"MODEL './no-such-model' is no folder here"):
        main(["./no-such-model"])
