"""The log of real engines as an operator reads it: few lines, each one a sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import Model, only, serving, sources, written
from tests.support import zoo
from tests.support.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

OPERATOR: dict[str, Any] = {"environment": {"NETLOADER_LOG_TEXT": ""}}
"""What a log is like by default; other engine tests have theirs as `event key=value ...`."""
MOST_INFO_LINES = 4
LINE = re.compile(
    r"\b(DEBUG|INFO|WARNING|ERROR) \d.*?\[\w+\.py:\d+\] (.*) \[(netloader\.[\w.]+)\]$"
)
RAW = re.compile(r"\bnetloader\.[\w.]+ netloader\.|\bnetloader\.[\w.]+=")
MOVED = r"(PLACE|PLACE \(attempt 2\)) in [\d.]+ m?s \([\d.]+ [GM]iB/s\), verified with \w+\."
KEPT = r"; \d MB of original weights are kept in dram for that"
LISTENING = r"Listening for clients at PLACE\."
SERVING = rf"Serving \d MB \(raw layout\) at PLACE({KEPT})?\."
LOADED = rf"Loaded \d MB from {MOVED}"
SENT = rf"Sent \d MB to {MOVED}"
INSTEAD = r"loading with vLLM's loader \(auto\) instead\."
ORDINARY = f"No source is named for this rank, or none fits; {INSTEAD}"
UNREACHABLE = (
    r"unreachable \(.*\); check that the source runs and that this host can reach its port\."
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    return written(folder, zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shapes."""
    config = zoo.llama_config(rope_theta=500000.0)
    folder = tmp_path_factory.mktemp("other")
    return zoo.write(folder / "full", config, zoo.llama_tensors(2, torch.bfloat16))


def sentences(engine: Engine) -> list[tuple[str, str]]:
    """Level and sentence of our lines, addresses left out; all that it prints are sentences."""
    log = engine.log()
    assert not RAW.search(log), log
    found = [match for match in map(LINE.search, log.splitlines()) if match]
    return [(line[1], re.sub(r"127\.0\.0\.1:\d+", "PLACE", line[2])) for line in found]


def said(engine: Engine, rank: str = "") -> str:
    """The same in lines; with a rank, only those that begin with its name, which is left out."""
    told = sentences(engine)
    return "\n".join(
        f"{level} {sentence.removeprefix(rank)}"
        for level, sentence in told
        if sentence.startswith(rank)
    )


def lines(*patterns: str) -> re.Pattern[str]:
    return re.compile("\n".join(patterns))


def test_a_good_start_is_at_most_four_lines_and_the_json_log_has_the_rest(
    fork_server: ForkServer, model: Model, tmp_path: Path
) -> None:
    json_log = tmp_path / "log.jsonl"
    with (
        serving(fork_server, model.full, tmp_path, **OPERATOR) as (server, at),
        fork_server.engine(
            model.bare, {**only(at), "LOG_JSON": str(json_log)}, **OPERATOR
        ) as client,
    ):
        assert client.generate() == server.generate()
        info = [f"INFO {line}" for line in (ORDINARY, LISTENING, SERVING, SENT)]
        assert lines(*info).fullmatch(said(server)), said(server)
        info = [f"INFO {line}" for line in (LOADED, LISTENING, SERVING)]
        assert lines(*info).fullmatch(said(client)), said(client)

    records = [json.loads(line) for line in json_log.read_text().splitlines()]
    events = {record["event"].removeprefix("netloader.") for record in records}
    assert events >= {
        *("config.loaded", "source.tried", "session.opened", "session.transition"),
        *("transfer.started", "transfer.finished", "session.closed", "loader.received"),
        *("listener.started", "server.offered"),
    }
    assert [record for record in records if record["severity"] != "INFO"] == []


def test_each_of_two_ranks_says_which_it_is_in_at_most_four_lines(
    fork_server: ForkServer, model: Model, tmp_path: Path
) -> None:
    with (
        serving(fork_server, model.full, tmp_path, ranks=2, **OPERATOR) as (server, at),
        fork_server.engine(model.bare, only(at), ranks=2, **OPERATOR) as client,
    ):
        assert client.generate() == server.generate()
        for engine in (server, client):
            assert {level for level, _ in sentences(engine)} == {"INFO"}
            ranks = [said(engine, f"Rank {rank}: ").splitlines() for rank in range(2)]
            assert sum(map(len, ranks)) == len(sentences(engine))
            assert all(0 < len(of_rank) <= MOST_INFO_LINES for of_rank in ranks)


def test_a_dead_first_source_is_one_warning_and_the_second_one_is_named(
    fork_server: ForkServer, model: Model, tmp_path: Path
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    with serving(fork_server, model.full, tmp_path, **OPERATOR) as (_, at):
        named = {"SOURCE": [{"device_id": 0, "sources": [dead, *at]}], "FALLBACK": "never"}
        with fork_server.engine(model.bare, named, **OPERATOR) as client:
            told = said(client)

    gone = f"WARNING Source PLACE does not say what it serves: {UNREACHABLE}"
    expected = lines(gone, f"INFO {LOADED}", f"INFO {LISTENING}", f"INFO {SERVING}")
    assert expected.fullmatch(told), told


def test_a_refusal_names_each_difference_and_what_follows(
    fork_server: ForkServer, model: Model, other: Path, tmp_path: Path
) -> None:
    with (
        serving(fork_server, model.full, tmp_path, **OPERATOR) as (_, at),
        fork_server.engine(other, sources(at), **OPERATOR) as client,
    ):
        told = said(client)

    expected = lines(
        r"WARNING Source PLACE differs in 'config\.rope_parameters': .* here, .* there; .*\.",
        r"WARNING Source PLACE differs in 'checkpoint': .* here, .* there; .*\.",
        r"WARNING No weights from a source: PLACE: identity_mismatch \(differing: "
        r"config\.rope_parameters, checkpoint\); loading with vLLM's loader \(auto\) instead\.",
        f"INFO {LISTENING}",
        f"INFO {SERVING}",
    )
    assert expected.fullmatch(told), told


def test_without_any_source_that_answers_the_log_says_why_and_what_follows(
    fork_server: ForkServer, other: Path
) -> None:
    dead = [f"127.0.0.1:{free_port()}"]
    with fork_server.engine(other, sources(dead), **OPERATOR) as client:
        told = said(client)

    expected = lines(
        f"WARNING Source PLACE does not say what it serves: {UNREACHABLE}",
        f"WARNING Source PLACE delivers no weights: {UNREACHABLE}",
        r"WARNING No weights from a source: PLACE: unreachable \(.*\); " + INSTEAD,
        f"INFO {LISTENING}",
        f"INFO {SERVING}",
    )
    assert expected.fullmatch(told), told
