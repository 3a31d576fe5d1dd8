"""The extra config as an operator writes it: what is understood, and what a refusal says."""

from pathlib import Path
from typing import Any

import pytest

from netloader.config import Deadlines, Endpoint
from netloader.vllm_plugin.config.readers import Fallback
from netloader.vllm_plugin.config.settings import (
    FIELDS,
    CachePolicy,
    LayoutChoice,
    Settings,
)
from tests.unit.vllm_plugin.config.refused import PLANTED, problems_of

# What is understood


@pytest.mark.parametrize("extra", [None, {}, {row.name: None for row in FIELDS}])
def test_nothing_given_means_the_documented_defaults(extra: dict[str, object] | None) -> None:
    assert Settings.parse(extra) == Settings(
        sources={},
        model=None,
        listen_port=None,
        int8_cache=CachePolicy.NO,
        int8_cache_name=(),
        output_prefix=None,
        config_file=None,
        transport="auto",
        listen_host=None,
        allow=(),
        rails=(),
        weight_cache=CachePolicy.AUTO,
        layout=LayoutChoice.AUTO,
        publish=None,
        discovery_timeout_s=5.0,
        first_timeout_s=300.0,
        agree_timeout_s=600.0,
        fallback=Fallback("auto"),
        standby=False,
        caches=False,
        save=None,
        max_clients=2,
        max_bandwidth=None,
        max_bandwidth_busy=None,
        token=None,
        tls=None,
        parallel=1,
        relay=False,
        lanes=None,
        segment_mib=64,
        digest="auto",
        deadlines=Deadlines(),
        log_json=None,
        metrics_port=None,
    )


def test_the_guide_s_example_is_understood() -> None:
    settings = Settings.parse(
        {
            "SOURCE": [
                {"device_id": 0, "sources": ["10.170.22.152:19374"]},
                {"device_id": 1, "sources": ["10.170.22.152:11228"]},
            ],
            "MODEL": "deepseek",
            "LISTEN_PORT": "20000",
            "INT8_CACHE": "HBM",
            "INT8_CACHE_NAME": ["down_proj"],
            "OUTPUT_PREFIX": "/run/netloader/rank-",
        }
    )

    assert settings.sources == {
        0: (Endpoint("10.170.22.152", 19374),),
        1: (Endpoint("10.170.22.152", 11228),),
    }
    assert settings.model == "deepseek"
    assert settings.listen_port == 20000
    assert settings.int8_cache is CachePolicy.HBM
    assert settings.int8_cache_name == ("down_proj",)
    assert settings.output_prefix == "/run/netloader/rank-"


def test_our_own_fields_are_understood() -> None:
    settings = Settings.parse(
        {
            "TRANSPORT": "tcp",
            "LISTEN_HOST": "::",
            "ALLOW": ["10.1.0.0/16", "fd00::7"],
            "RAILS": ["10.1.0.7", "fd00::7"],
            "WEIGHT_CACHE": "dram",
            "LAYOUT": "processed",
            "MAX_CLIENTS": 7,
            "MAX_BANDWIDTH": "2GB",
            "MAX_BANDWIDTH_BUSY": "500MB",
            "PARALLEL": 16,
            "RELAY": True,
            "LANES": 16,
            "SEGMENT_MIB": 1,
            "DIGEST": "BLAKE3",
            "LOG_JSON": "stderr",
            "METRICS_PORT": 9400,
            "CONNECT_TIMEOUT_S": 1,
            "HANDSHAKE_TIMEOUT_S": 2,
            "VALIDATE_TIMEOUT_S": 3,
            "STALL_TIMEOUT_S": 4,
            "TRANSFER_TIMEOUT_S": 5.5,
            "MIN_RATE_MIB_S": 100,
            "QUEUE_TIMEOUT_S": 0,
            "AGREE_TIMEOUT_S": 60,
            "DISCOVERY_TIMEOUT_S": 0.5,
        }
    )

    assert (settings.transport, settings.listen_host) == ("tcp", "::")
    assert settings.allow == ("10.1.0.0/16", "fd00::7")
    assert settings.weight_cache is CachePolicy.DRAM
    assert settings.layout is LayoutChoice.PROCESSED
    assert settings.agree_timeout_s == 60.0
    assert settings.discovery_timeout_s == 0.5
    assert (settings.max_clients, settings.lanes, settings.segment_mib) == (7, 16, 1)
    assert settings.rails == ("10.1.0.7", "fd00::7")
    assert settings.max_bandwidth == 2 * 10**9
    assert (settings.parallel, settings.relay) == (16, True)
    assert (settings.digest, settings.log_json) == ("blake3", "stderr")
    assert (settings.log_json, settings.metrics_port) == ("stderr", 9400)
    assert settings.deadlines == Deadlines(1.0, 2.0, 3.0, 4.0, 5.5, 100.0 * 2**20, 0.0)


@pytest.mark.parametrize("source", [None, [], [{"device_id": 0, "sources": []}]])
def test_an_empty_source_means_no_source(source: object) -> None:
    assert Settings.parse({"SOURCE": source}).sources == {}


def test_the_same_rank_twice_keeps_all_its_endpoints_in_order() -> None:
    settings = Settings.parse(
        {
            "SOURCE": [
                {"device_id": 0, "sources": ["node-b:2", "[::1]:1"]},
                {"device_id": 1, "sources": ["other:9"]},
                {"device_id": 0, "sources": ["node-a:3"]},
            ]
        }
    )

    assert [str(end) for end in settings.sources[0]] == ["node-b:2", "[::1]:1", "node-a:3"]


def test_save_is_an_absolute_path_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    (relative,) = problems_of({"SAVE": "saved"})
    (file,) = problems_of({"SAVE": str(tmp_path / "file")})

    assert "SAVE" in relative
    assert "saved" in relative
    assert "give an absolute path" in relative
    assert "something else at this path" in file


@pytest.mark.parametrize("port", [-1, 0, 80, 1024, 65535, 65536, 10**9])
def test_a_listen_port_out_of_range_is_kept_and_no_error(port: int) -> None:
    assert Settings.parse({"LISTEN_PORT": port}).listen_port == port


@pytest.mark.parametrize(
    ("given", "fallback"),
    [
        ("never", None),
        ("NEVER", None),
        ({"load_format": "never"}, None),
        ("runai_streamer", Fallback("runai_streamer")),
        ({"load_format": "auto"}, Fallback("auto")),
        ({"load_format": "auto", "model_loader_extra_config": None}, Fallback("auto")),
        (
            {"load_format": "auto", "model_loader_extra_config": {"num_threads": 4}},
            Fallback("auto", {"num_threads": 4}),
        ),
    ],
)
def test_the_fallback_may_be_a_name_an_object_or_never(
    given: object, fallback: Fallback | None
) -> None:
    assert Settings.parse({"FALLBACK": given}).fallback == fallback


# What is refused

SOURCE_ENTRY = '; give {"device_id": 0, "sources": ["host:port"]}'


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"SOURCE": {"a": 1}}, "SOURCE: an object with 1 fields cannot be used; give a text"),
        ({"SOURCE": "h:x"}, "SOURCE: endpoint 'h:x': write host:port or [IPv6]:port"),
        ({"SOURCE": 7}, "SOURCE: 7 cannot be used; give a text such as"),
        ({"DISCOVERY_TIMEOUT_S": 0}, "DISCOVERY_TIMEOUT_S: 0 cannot be used; give a number from"),
        ({"SOURCE": [5]}, "SOURCE[0]: 5 cannot be used" + SOURCE_ENTRY),
        ({"SOURCE": [{"device_id": 0}]}, "SOURCE[0].sources is missing; give a list"),
        ({"SOURCE": [{"sources": []}]}, "SOURCE[0].device_id is missing; give an integer from 0"),
        (
            {"SOURCE": [{"device_id": -1, "sources": []}]},
            "SOURCE[0].device_id: -1 cannot be used; give an integer from 0",
        ),
        (
            {"SOURCE": [{"device_id": "0", "sources": []}]},
            "SOURCE[0].device_id: '0' cannot be used; give an integer from 0",
        ),
        (
            {"SOURCE": [{"device_id": False, "sources": []}]},
            "SOURCE[0].device_id: False cannot be used; give an integer from 0",
        ),
        (
            {"SOURCE": [{"device_id": 0, "sources": "h:1"}]},
            "SOURCE[0].sources: 'h:1' cannot be used; give a list, even of one",
        ),
        (
            {"SOURCE": [{"device_id": 0, "sources": []}, {"device_id": 1, "sources": ["::1:80"]}]},
            "SOURCE[1].sources[0]: endpoint '::1:80': put the IPv6 address in brackets",
        ),
        (
            {"SOURCE": [{"device_id": 0, "sources": ["a:1", 7]}]},
            "SOURCE[0].sources[1]: 7 cannot be used; give one line of text",
        ),
        (
            {"SOURCE": [{"device_id": 0, "sources": [], "Device": 1}]},
            "SOURCE[0]: there is no field 'Device'; did you mean device_id?",
        ),
        ({"MODEL": ""}, "MODEL: '' cannot be used; give one line of text"),
        ({"MODEL": 5}, "MODEL: 5 cannot be used; give one line of text"),
        ({"LISTEN_PORT": True}, "LISTEN_PORT: True cannot be used; give an integer, 1024 to 65535"),
        ({"LISTEN_PORT": "x"}, "LISTEN_PORT: 'x' cannot be used; give an integer, 1024 to 65535"),
        ({"LISTEN_PORT": 1.5}, "LISTEN_PORT: 1.5 cannot be used; give an integer, 1024 to 65535"),
        ({"INT8_CACHE": "auto"}, "INT8_CACHE: 'auto' cannot be used; give one of hbm, dram, no"),
        ({"WEIGHT_CACHE": 1}, "WEIGHT_CACHE: 1 cannot be used; give one of hbm, dram, no, auto"),
        ({"INT8_CACHE_NAME": "q"}, "INT8_CACHE_NAME: 'q' cannot be used; give a list"),
        ({"INT8_CACHE_NAME": ["q", ""]}, "INT8_CACHE_NAME[1]: '' cannot be used; give one line"),
        ({"TRANSPORT": ""}, "TRANSPORT: '' cannot be used; give one line of text"),
        ({"FALLBACK": 3}, "FALLBACK: 3 cannot be used; give a load format"),
        ({"FALLBACK": "netloader"}, "FALLBACK: 'netloader' cannot be used; give a load format"),
        ({"FALLBACK": {}}, "FALLBACK.load_format is missing; give a load format other"),
        (
            {"FALLBACK": {"load_format": " NetLoader"}},
            "FALLBACK.load_format: ' NetLoader' cannot be used; give a load format other",
        ),
        (
            {"FALLBACK": {"load_format": "auto", "model_loader_extra_config": PLANTED}},
            "FALLBACK.model_loader_extra_config: the value, which is not shown, cannot be used; ",
        ),
        (
            {"FALLBACK": {"load_format": "auto", "config": {}}},
            "FALLBACK: there is no field 'config'; known: load_format, model_loader_extra_config",
        ),
        ({"ALLOW": "10.0.0.0/8"}, "ALLOW: '10.0.0.0/8' cannot be used; give a list, even of one"),
        ({"ALLOW": ["10.0.0.9/8"]}, "ALLOW[0]: '10.0.0.9/8' is no network; bits of the host are"),
        ({"ALLOW": ["::1", 5]}, "ALLOW[1]: 5 cannot be used; give one line of text"),
        ({"DIGEST": "md5"}, "DIGEST: 'md5' cannot be used; give one of auto, blake3, xxh3_128"),
        ({"RAILS": ["10.1.0.0/16"]}, "RAILS[0]: '10.1.0.0/16' is no address; write that of one"),
        ({"RAILS": ["::"]}, "RAILS[0]: '::' is no address; write that of one interface"),
        ({"RAILS": ["10.0.0.1"] * 17}, "RAILS: a list of 17 cannot be used; give at most 16"),
        ({"MAX_CLIENTS": 0}, "MAX_CLIENTS: 0 cannot be used; give an integer from 1"),
        ({"LANES": 17}, "LANES: 17 cannot be used; give an integer from 1 to 16"),
        ({"PARALLEL": 0}, "PARALLEL: 0 cannot be used; give an integer from 1 to 16"),
        ({"PARALLEL": 17}, "PARALLEL: 17 cannot be used; give an integer from 1 to 16"),
        ({"RELAY": "yes"}, "RELAY: 'yes' cannot be used; give true or false"),
        ({"SEGMENT_MIB": 64.0}, "SEGMENT_MIB: 64.0 cannot be used; give an integer from 1 to 1024"),
        ({"STALL_TIMEOUT_S": 0}, "STALL_TIMEOUT_S: 0 cannot be used; give a number from 0.001"),
        ({"STALL_TIMEOUT_S": True}, "STALL_TIMEOUT_S: True cannot be used; give a number"),
        ({"QUEUE_TIMEOUT_S": -1}, "QUEUE_TIMEOUT_S: -1 cannot be used; give a number from 0 to"),
        ({"MIN_RATE_MIB_S": 0}, "MIN_RATE_MIB_S: 0 cannot be used; give a number from 0.001 to 1e"),
        ({"CONNECT_TIMEOUT_S": "5"}, "CONNECT_TIMEOUT_S: '5' cannot be used; give a number"),
        ({"METRICS_PORT": 65536}, "METRICS_PORT: 65536 cannot be used; give an integer from 0"),
        ({"LOG_JSON": ["a"]}, "LOG_JSON: a list of 1 cannot be used; give one line of text"),
        (
            {"SORCE": []},
            "model_loader_extra_config: there is no field 'SORCE'; did you mean SOURCE?",
        ),
        (
            {"listen_port": 1},
            "model_loader_extra_config: there is no field 'listen_port'; did you mean LISTEN_PORT?",
        ),
        ({"zzz": 1}, "model_loader_extra_config: there is no field 'zzz'; known: SOURCE, MODEL, "),
        ({7: 1}, "model_loader_extra_config: there is no field 7; known: SOURCE, MODEL, "),
        ({"TLS_CERT": 1}, "TLS_CERT: 1 cannot be used; give one line of text"),
        ({"TLS_CA": 5}, "TLS_CA: 5 cannot be used; give one line of text"),
        ({"TLS_CA": "/ca.pem"}, "TLS_CERT is missing; every instance serves, so it needs a"),
        ({"TLS_CERT": "/none.pem"}, "TLS_CERT: the certificate /none.pem with its key cannot be"),
        (
            {"tls_key": 1},
            "model_loader_extra_config: there is no field 'tls_key'; did you mean TLS_KEY?",
        ),
        (
            {"MAX_BANDWIDTH": "2 gigabit"},
            "MAX_BANDWIDTH: '2 gigabit' cannot be used; give bytes per second, such as 500MB, 2GB",
        ),
        ([1], "model_loader_extra_config: a list of 1 cannot be used; give a JSON object"),
    ],
)
def test_a_wrong_field_is_refused_by_name_value_and_remedy(extra: Any, problem: str) -> None:
    problems = problems_of(extra)

    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_every_problem_is_in_one_error() -> None:
    problems = problems_of(
        {
            "SOURCE": [{"device_id": "a", "sources": ["x", "h:0"]}, {}],
            "LANES": 0,
            "TRANSPROT": "tcp",
            "AUTH_TOKEN_FILE": "/nonexistent",
        }
    )

    assert sorted(problem.split(";")[0].split(": ")[0].split(" is")[0] for problem in problems) == [
        "AUTH_TOKEN_FILE",
        "LANES",
        "SOURCE[0].device_id",
        "SOURCE[0].sources[0]",
        "SOURCE[0].sources[1]",
        "SOURCE[1].device_id",
        "SOURCE[1].sources",
        "model_loader_extra_config",
    ]
