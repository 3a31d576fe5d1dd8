"""Settings that only vLLM can judge are judged at start, and told with all the others."""

from pathlib import Path
from typing import Any

import pytest
from vllm.config.load import LoadConfig

from netloader.errors import ConfigError
from netloader.vllm_plugin import register
from netloader.vllm_plugin.load.loader import NetLoader

PLANTED = "hunter2-hunter2-hunter2"


@pytest.fixture(autouse=True)
def registered() -> None:
    register()


def problems_of(**extra: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        NetLoader(LoadConfig(load_format="netloader", model_loader_extra_config=extra))
    return caught.value.problems


@pytest.mark.parametrize("fallback", ["no_such_format", {"load_format": "no_such_format"}])
def test_a_fallback_that_vllm_does_not_have_is_refused_at_start(fallback: object) -> None:
    (problem,) = problems_of(FALLBACK=fallback)
    assert problem.startswith("FALLBACK: 'no_such_format' cannot be used; give a load format")


def test_an_extra_config_that_the_fallback_does_not_take_is_refused_at_start() -> None:
    extra = {"load_format": "auto", "model_loader_extra_config": {"bogus": PLANTED}}
    (problem,) = problems_of(FALLBACK=extra)
    assert "FALLBACK: 'auto'" in problem
    assert "bogus" in problem
    assert PLANTED not in problem


def test_a_loader_that_quotes_its_extra_config_gives_no_secret_away() -> None:
    inner = {"enable_multithread_load": True, "num_threads": PLANTED, "more": [{"deep": PLANTED}]}
    (problem,) = problems_of(
        FALLBACK={"load_format": "sharded_state", "model_loader_extra_config": inner}
    )
    assert PLANTED not in problem


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    problems = problems_of(
        FALLBACK="no_such_format",
        TRANSPORT="pigeon",
        MAX_CLIENTS=0,
        SORCE=[],
        LOG_JSON=str(tmp_path),
    )
    starts = [problem.partition(":")[0] for problem in problems]
    assert sorted(starts) == [
        "FALLBACK", "LOG_JSON", "MAX_CLIENTS", "TRANSPORT", "model_loader_extra_config",
    ]  # fmt: skip


def test_a_log_in_a_folder_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    (problem,) = problems_of(LOG_JSON=f"{tmp_path}/no/such/log")
    assert "does not exist" in problem
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "fallback", ["auto", "dummy", "never", "safetensors", "sharded_state", "pt",
                 {"load_format": "auto",
                  "model_loader_extra_config": {"enable_multithread_load": True}}],
)  # fmt: skip
def test_what_vllm_has_is_taken(fallback: object) -> None:
    NetLoader(LoadConfig(load_format="netloader", model_loader_extra_config={"FALLBACK": fallback}))


@pytest.mark.parametrize(
    ("extra", "start", "remedy"),
    [
        (
            {"TRANSPORT": "gloo"},
            "RELAY: true, but what is received is served over tcp only, and TRANSPORT is 'gloo'",
            "set TRANSPORT to auto or tcp, or RELAY to false",
        ),
        (
            {"LAYOUT": "processed"},
            "RELAY: true, but only weights in the raw layout",
            "set LAYOUT to auto or raw, or RELAY to false",
        ),
    ],
)
def test_a_relay_that_could_serve_nobody_is_refused_at_start(
    extra: dict[str, Any], start: str, remedy: str
) -> None:
    (problem,) = problems_of(RELAY=True, **extra)
    assert problem.startswith(start)
    assert problem.endswith(remedy)
    NetLoader(LoadConfig(load_format="netloader", model_loader_extra_config=extra))


def test_an_instance_on_standby_that_could_not_be_filled_in_place_is_refused_at_start() -> None:
    (problem,) = problems_of(STANDBY=True, LAYOUT="processed")
    assert problem.startswith("STANDBY: true, but a model is filled in place from the raw layout")
    assert problem.endswith("set LAYOUT to auto or raw, or STANDBY to false")


def test_rails_of_a_server_that_listens_at_one_address_are_refused_at_start() -> None:
    (problem,) = problems_of(RAILS=["10.1.0.7"], LISTEN_HOST="10.1.0.7")
    assert problem.startswith("RAILS: a rank listens at one address; set LISTEN_HOST to '*'")
    extra = {"RAILS": ["10.1.0.7"], "LISTEN_HOST": "*"}
    NetLoader(LoadConfig(load_format="netloader", model_loader_extra_config=extra))


def test_a_bandwidth_below_the_minimum_rate_of_transfers_is_refused_at_start() -> None:
    (problem,) = problems_of(MAX_BANDWIDTH="200MB", MAX_CLIENTS=4)
    assert problem.startswith("MAX_BANDWIDTH: the share of each of 4 clients is 47.7 MiB/s, below")
    (problem,) = problems_of(MAX_BANDWIDTH="2GB", MAX_BANDWIDTH_BUSY="200MB", MAX_CLIENTS=4)
    assert problem.startswith("MAX_BANDWIDTH_BUSY: the share of each of 4 clients is 47.7 MiB/s")
    extra = {"MAX_BANDWIDTH": "200MB", "MAX_CLIENTS": 4, "MIN_RATE_MIB_S": 40}
    NetLoader(LoadConfig(load_format="netloader", model_loader_extra_config=extra))


@pytest.mark.parametrize("extra", [{}, {"TRANSPORT": "tcp", "LAYOUT": "raw"}, {"TRANSPORT": None}])
def test_a_relay_is_fine_with_tcp_and_the_raw_layout(extra: dict[str, Any]) -> None:
    given = {"RELAY": True, **extra}
    NetLoader(LoadConfig(load_format="netloader", model_loader_extra_config=given))
