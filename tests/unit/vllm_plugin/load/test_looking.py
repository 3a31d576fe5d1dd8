"""A start whose sources are looked up: what it costs, and what the log says, when none works."""

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from netloader.config import Endpoint
from netloader.discovery.keys import KEYED, instance_key_of, key_of
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.io.failed_sources import heard
from netloader.io.outcome import Attempt
from netloader.log import capture
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity.reading import read_config
from netloader.vllm_plugin.load import looking
from netloader.vllm_plugin.load.loader import NetLoader, NoWeightsError
from netloader.vllm_plugin.load.looking import look
from netloader.vllm_plugin.load.plan import LoadPlan, looked_up_again, plan_load
from tests.support.registries import redis_server
from tests.unit.io.helpers import closed_port
from tests.unit.vllm_plugin.helpers import Lines, events, identity, line_of
from tests.unit.vllm_plugin.load.test_loader import load_config
from tests.unit.vllm_plugin.load.test_plan import (
    LOGGER,
    model_config,
    no_one,
    parallel,
    vllm_config,
)


def start(source: object, **settings: Any) -> tuple[Lines, str]:
    """What a start logs that may not fall back, and what it raises."""
    loader = NetLoader(load_config(SOURCE=source, FALLBACK="never", **settings))
    local = read_config(vllm_config(), model_config(), None)
    with capture() as lines:
        found = plan_load(local, loader._settings, loader._receiver.ask, loader._logger)
        loader._plan = replace(found, identify=lambda layout, _: identity(layout=layout))
        with pytest.raises(NoWeightsError) as raised:
            loader.load_weights(nn.Linear(4, 4), SimpleNamespace())
    return lines, str(raised.value)


def test_a_source_that_is_found_and_cannot_be_reached_is_the_warning_of_a_fallback(
    tmp_path: Path,
) -> None:
    gone = closed_port()
    (tmp_path / "a-0.txt").write_text(str(gone))

    lines, raised = start(f"file:{tmp_path}/*-{{RANK}}.txt")

    detail = f"{gone}: unreachable (found, but it accepts no connection)"
    line = line_of(lines, "netloader.fallback.engaged")
    assert line["netloader.detail"] == detail
    assert detail in raised
    assert "netloader.loader.ordinary" not in events(lines)


def test_a_place_that_gives_no_answer_is_the_warning_of_a_fallback() -> None:
    name = "a" * 64 + ".test:7"

    lines, raised = start(name)

    why = line_of(lines, "netloader.fallback.engaged")["netloader.detail"]
    assert why.startswith(f"{name}: ")
    assert why in raised
    assert line_of(lines, "netloader.discovery.failed")["netloader.finder"] == name


@pytest.mark.parametrize("scheme", ["redis", "etcd"])
def test_a_registry_that_is_down_is_the_warning_of_a_fallback(scheme: str) -> None:
    url = f"{scheme}://:hunter2@{closed_port()}"

    lines, raised = start(url, DISCOVERY_TIMEOUT_S=20)

    why = line_of(lines, "netloader.fallback.engaged")["netloader.detail"]
    assert why.startswith(f"{scheme}://127.0.0.1:")
    assert why in raised
    assert "hunter2" not in str(lines) + raised


def test_nobody_is_no_warning(tmp_path: Path) -> None:
    lines, raised = start(f"file:{tmp_path}/none")

    assert "no source" in raised
    assert line_of(lines, "netloader.discovery.looked")["netloader.found"] == 0
    assert "netloader.loader.ordinary" in events(lines)
    assert "netloader.fallback.engaged" not in events(lines)


def test_a_reload_looks_again_at_who_is_there(tmp_path: Path) -> None:
    def planned() -> LoadPlan:
        settings = Settings.parse({"SOURCE": f"file:{tmp_path}/*"})
        return plan_load(read_config(vllm_config(), model_config(), None), settings, no_one, LOGGER)

    plan = planned()
    assert plan.sources == ()
    (tmp_path / "a").write_text("a.test:1")
    assert looked_up_again(plan).sources == ()
    assert looked_up_again(replace(plan, lookup=None)) == replace(plan, lookup=None)


def test_servers_are_looked_up_by_what_makes_their_weights_interchangeable() -> None:
    def key(model: Any = None, **changes: Any) -> str:
        return key_of(early(model, **changes)).digest

    same = model_config()
    same.hf_config.to_dict = lambda: {"hidden_size": 9}
    assert key() == key() == key(same), "the comparison says which field of the config differs"
    other = model_config()
    other.quantization = "w8a8"
    assert len({key(), key(other), key(data_parallel_size=2)}) == 3
    assert parallel().data_parallel_size == 1
    plain = {name for name in early().hard if "." not in name}
    assert plain == set(KEYED), "a field that says which part it is belongs to the key"


def early(model: Any = None, **changes: Any) -> Identity:
    return read_config(vllm_config(**changes), model or model_config(), None).early


def test_ranks_of_an_instance_have_one_key_in_common_and_keys_of_their_own() -> None:
    ranks = [
        Identity({**early().hard, "tensor_parallel": f"{rank} of 2", "expert_parallel": str(rank)})
        for rank in range(2)
    ]
    other = Identity({**early().hard, "tensor_parallel": "0 of 4"})
    assert len({key_of(each).digest for each in (*ranks, other)}) == 3
    assert instance_key_of(ranks[0]) == instance_key_of(ranks[1]) != instance_key_of(other)


def test_an_instance_on_standby_neither_claims_the_first_load_nor_waits_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claimed(*_: object) -> None:
        pytest.fail("it waits")

    monkeypatch.setattr(looking, "wait_for_first", claimed)
    monkeypatch.setattr(looking, "_instance", lambda: "instance")
    local = read_config(vllm_config(), model_config(), None)
    with redis_server() as (at, _):
        settings = Settings.parse({"SOURCE": f"redis://{at}/llm", "STANDBY": True})
        found = look(local, settings, LOGGER, serves=True)
        assert (found.now, found.place and found.place.claim) == ((), None)
        assert found.place, "it is published once it is filled"
        with pytest.raises(pytest.fail.Exception, match="it waits"):
            look(local, replace(settings, standby=False), LOGGER, serves=True)


def asked(source: object, **settings: Any) -> tuple[str, ...]:
    """The sources of a rank, in the order in which they are asked."""
    chosen = Settings.parse({"SOURCE": source, **settings})
    local = read_config(vllm_config(), model_config(), None)
    return tuple(map(str, look(local, chosen, LOGGER, serves=False).now))


def test_what_failed_for_another_rank_is_asked_last_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.1:3"]
    by_rank = [{"device_id": 0, "sources": written}]
    assert asked(by_rank) == tuple(written)
    heard(Attempt(Endpoint("10.0.0.1", 1), Reason.DIGEST_MISMATCH, "", 0, {}))
    assert asked(by_rank) == ("10.0.0.2:2", "10.0.0.1:3", "10.0.0.1:1")


def test_a_rank_does_not_ask_its_own_instance() -> None:
    at = {"LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": 20000}
    assert asked("127.0.0.1:20000", **at) == ()
    assert asked("127.0.0.1:20001", **at) == ("127.0.0.1:20001",)
    assert asked("127.0.0.1:20000") == ("127.0.0.1:20000",)
