"""The comparison itself: what it notices, which part of it counts, and what the row says."""

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from netloader.vllm_plugin.parity.__main__ import main
from netloader.vllm_plugin.parity.engine import Engine, EngineError
from netloader.vllm_plugin.parity.rows import Held, Row, Seen, compare, notices, table
from netloader.vllm_plugin.parity.run import Case, examine, without_weights

OPEN = Held({"a.weight": "d1", "b": "d2"}, {"scale": 1.0, "flag": True}, {}, {})
COPIED = replace(OPEN, opaque={"a.cpu_linear(handler)": "Handle"})
SEALED = replace(COPIED, sealed=COPIED.opaque)


def seen(held: Held = OPEN, **changes: Any) -> Seen:
    return replace(Seen([{"target": held}], [[1, 2]], [[-0.5, -0.25]], (0, 0)), **changes)


def mute(held: Held) -> Seen:
    return Seen([{"target": held}], (), (), (0, 0))


DRAFTED = Seen([{"target": SEALED, "draft": SEALED}], [[1, 2]], [[-0.5, -0.25]], (4, 3))


@pytest.mark.parametrize(
    ("what", "oracle"),
    [
        (seen(), "tensors"),
        (seen(COPIED), "tokens"),
        (seen(SEALED), "tokens"),
        (DRAFTED, "tokens+acceptance"),
        (mute(OPEN), "digests"),
        (mute(COPIED), "digests"),
        (mute(SEALED), "none"),
    ],
)
def test_what_is_hidden_decides_which_comparison_counts(what: Seen, oracle: str) -> None:
    assert what.oracle == oracle


def row(**found: Any) -> Row:
    return replace(Row("m", "bfloat16", "none", "-", noticed=True), **found)


def test_two_that_are_alike_are_identical() -> None:
    found = compare(seen(), seen())
    assert found["differences"] == ()
    assert row(**found).verdict == "identical"


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (seen(tokens=[[1, 3]]), "tokens: [[1, 2]] against [[1, 3]]"),
        (seen(logprobs=[[-0.5, -0.2500001]]), "log-probabilities"),
        (seen(replace(OPEN, tensors={**OPEN.tensors, "b": "d3"})), "b: 'd2' against 'd3'"),
        (seen(replace(OPEN, tensors={"a.weight": "d1"})), "b: 'd2' against missing"),
        (seen(replace(OPEN, scalars={**OPEN.scalars, "flag": 1})), "flag: True against 1"),
        (seen(replace(OPEN, scalars={**OPEN.scalars, "new": 0})), "new: missing against 0"),
        (seen(SEALED), "a.cpu_linear(handler): missing against 'Handle'"),
        (replace(seen(), held=[]), "ranks: 1 against 0"),
        (replace(seen(), held=[{"target": OPEN, "draft": OPEN}]), "draft: missing against ''"),
    ],
)
def test_one_difference_is_wrong_and_is_shown(theirs: Seen, said: str) -> None:
    found = compare(seen(), theirs)
    assert any(said in line for line in found["differences"])
    assert row(**found).verdict == "WRONG"


def test_fewer_accepted_drafts_are_wrong_even_when_the_tokens_are_right() -> None:
    found = compare(DRAFTED, replace(DRAFTED, drafts=(4, 0)))
    assert found["tokens"]
    assert row(**found).verdict == "WRONG"


def test_a_number_that_is_none_equals_itself() -> None:
    held = replace(OPEN, scalars={"scale": float("nan")})
    assert compare(seen(held), seen(replace(held, scalars={"scale": float("nan")})))["tensors"]


def test_many_differences_are_cut_short() -> None:
    many = replace(OPEN, tensors={f"t{i}": "x" for i in range(100)})
    found = compare(seen(many), seen(replace(many, tensors=dict.fromkeys(many.tensors, "y"))))
    assert found["differences"][-1].endswith("and 80 more")


ZEROED = dict.fromkeys(OPEN.tensors, "zero")


@pytest.mark.parametrize(
    ("role", "before", "after", "noticed"),
    [
        ("target", seen(), seen(replace(OPEN, tensors=ZEROED)), True),
        ("target", seen(), seen(), False),
        ("target", seen(SEALED), seen(replace(SEALED, tensors=ZEROED)), False),
        ("target", seen(SEALED), seen(SEALED, tokens=[[0, 0]]), True),
        ("target", seen(SEALED), seen(SEALED, logprobs=[[-1.0, -1.0]]), True),
        ("draft", DRAFTED, replace(DRAFTED, drafts=(8, 0)), True),
        ("draft", DRAFTED, replace(DRAFTED, tokens=[[0, 0]]), False),
        ("target", mute(SEALED), mute(SEALED), False),
    ],
)
def test_only_what_counts_notices_erased_weights(
    role: str, before: Seen, after: Seen, noticed: bool
) -> None:
    assert notices(role, before, after) is noticed


def test_a_comparison_that_notices_nothing_is_blind() -> None:
    assert row(**compare(seen(), seen())).verdict == "identical"
    assert replace(row(**compare(seen(), seen())), noticed=False).verdict == "BLIND"


def test_the_table_has_a_line_for_each_row() -> None:
    lines = table([row(nbytes=1234567), row(refusal="no | thanks")]).splitlines()
    assert len(lines) == 4
    assert "1 234 567" in lines[2]
    assert "refused: no / thanks" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


class Stage:
    """Engines that exist on paper: the first one serves, the second one receives."""

    offer = (
        "INFO x] netloader.server.offered netloader.layout=raw netloader.raw_bytes=100 "
        'netloader.cached_bytes=7 netloader.note="a b"\n'
    )

    def __init__(self, server_log: str = offer, failure: str = "", client: Seen | None = None):
        self.server_log, self.failure = server_log, failure
        self.client = client or seen(SEALED)
        self.erased = False
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


class Paper(Engine):
    def __init__(self, stage: Stage, serves: bool) -> None:
        self.stage, self.serves = stage, serves
        self.facts = {"dtype": "bfloat16", "quantization": "none"}

    def tell(self, **command: Any) -> Any:
        shows = seen(SEALED) if self.serves else self.stage.client
        match command["do"]:
            case "inventory":
                return shows.held
            case "generate":
                tokens = [[0, 0]] if self.stage.erased else shows.tokens
                return tokens, shows.logprobs, shows.drafts
            case "rpc":
                self.stage.erased = True
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
    assert (found.oracle, found.noticed, found.verdict) == ("tokens", True, "identical")
    (_, served, _), (bare, received, _) = stage.models
    assert [file.name for file in bare.iterdir()] == ["config.json"]
    assert received["SOURCE"] == [{"device_id": 0, "sources": ["127.0.0.1:4000"]}]
    assert received["FALLBACK"] == "never"
    assert served["MODEL"] == received["MODEL"]


def test_other_tokens_make_the_row_wrong(case: Case, tmp_path: Path) -> None:
    stage = Stage(client=seen(SEALED, tokens=[[9, 9]]))
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


def test_a_folder_without_weights_keeps_everything_else(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    (folder / "original").mkdir(parents=True)
    kept = {"config.json", "tokenizer.json", "tokenizer.model"}
    gone = {"a-1.safetensors", "a.safetensors.index.json", "b.bin", "c.pth", "d.gguf"}
    for name in kept | gone:
        (folder / name).write_text(name)
    assert {file.name for file in without_weights(folder, tmp_path / "bare").iterdir()} == kept


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


def test_a_model_that_is_nowhere_is_named_in_one_line() -> None:
    with pytest.raises(SystemExit, match=r"MODEL './no-such-model' is no folder here"):
        main(["./no-such-model"])
