"""A rank on standby: what it needs, what it refuses, and what a fill that fails leaves behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from netloader.config import Endpoint
from netloader.discovery.files import Files
from netloader.discovery.names import Address
from netloader.errors import ConfigError, UnsafeError
from netloader.io.store.module import manifest_of, named_tensors
from netloader.log import capture, get_logger
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.config.sources import dealt, finders_of
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.load import agree, receiving, standby
from netloader.vllm_plugin.load.load_state import NOTHING
from netloader.vllm_plugin.load.loaded import Loaded
from netloader.vllm_plugin.load.receiving import Receiver
from netloader.vllm_plugin.load.reload import Reloadable, remember
from netloader.vllm_plugin.load.room import Room
from netloader.vllm_plugin.load.standby import StandbyRank
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.serve.standing import Report, StandbyError
from tests.support.relay import Fault, Relay
from tests.unit.io.helpers import (
    closed_port,
    contents,
    eventually,
    module_of,
    places,
    random,
    serving,
)
from tests.unit.vllm_plugin.helpers import (
    Model,
    events,
    identity,
    plan,
    post_process,
    receive,
    settings,
)

pytestmark = pytest.mark.usefixtures("worker_process")

LOGGER = get_logger("client", LOG_BASE)


def placeholders(size: int = 2000) -> nn.Module:
    model = weights(size, seed=8)
    named = named_tensors(model)
    manifest = manifest_of(named)
    remember(model, Reloadable(plan(), manifest, room=Room(named, manifest)))
    return model


def weights(size: int = 2000, seed: int = 1) -> nn.Module:
    return module_of(a=random(size // 50, 50, seed=seed), b=random(7, seed=seed + 1))


class Standby:
    """A rank on standby, whose sources a test names."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        ranks: tuple[int, ...] = (0,),
        model: nn.Module | None = None,
        hasty: Settings | None = None,
    ) -> None:
        self.model = model or placeholders()
        self.plan = plan(ranks=ranks)
        local: Any = SimpleNamespace(checkpoint=SimpleNamespace(built=False))
        receiver = Receiver(hasty or settings(), LOGGER, False)
        self.rank = StandbyRank(self.model, local, self.plan, receiver)
        self.at: tuple[Endpoint, ...] = ()
        monkeypatch.setattr(receiving, "plan_load", lambda *_: plan(ranks=ranks, sources=self.at))

    def fill(self, reload: Any = None) -> Report:
        return self.rank.fill(reload or self.reload)

    def reload(self, weights_iterator: Any) -> None:
        self.model.load_weights(weights_iterator)  # type: ignore[operator]


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Standby:
    return Standby(monkeypatch)


@contextmanager
def source(model: nn.Module) -> Iterator[Endpoint]:
    with serving(model, identity()) as server:
        yield server.endpoint


def test_a_filled_rank_holds_what_its_source_holds_and_offers_it(waiting: Standby) -> None:
    real = weights()
    with source(real) as at, capture() as lines:
        waiting.at = (at,)
        assert not waiting.rank.status()["filled"]
        report = waiting.fill()
    assert report["filled"]
    assert report["bytes"] == 40 * 50 * 4 + 7 * 4
    assert contents(waiting.model) == contents(real)
    assert "netloader.standby.filled" in events(lines)
    client = module_of(a=random(40, 50), b=random(7))
    assert receive(client).ok
    assert contents(client) == contents(real)


def test_a_reload_that_fails_leaves_it_on_standby_and_the_next_fill_succeeds(
    waiting: Standby,
) -> None:
    def fails(weights_iterator: Any) -> None:
        raise RuntimeError("no kernel")

    real = weights()
    with source(real) as at:
        waiting.at = (at,)
        report = waiting.fill(fails)
        assert not report["filled"]
        assert "RuntimeError: no kernel" in report["why"]
        assert not waiting.rank.status()["filled"]
        assert waiting.fill()["filled"]
    assert contents(waiting.model) == contents(real)


def test_a_transfer_that_ends_half_way_leaves_it_on_standby_and_another_source_fills_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extra = {"LISTEN_HOST": "127.0.0.1", "TRANSPORT": "tcp", "STALL_TIMEOUT_S": 1}
    waiting = Standby(monkeypatch, model=placeholders(4 << 20), hasty=Settings.parse(extra))
    other, real = weights(4 << 20, seed=3), weights(4 << 20)
    where = places(waiting.model)
    before = contents(waiting.model)
    with source(other) as at, Relay(at, Fault.HOLD, at=3 << 20) as dying:
        waiting.at = (dying.endpoint,)
        report = waiting.fill(lambda **_: pytest.fail("nothing is to be written"))
    assert not report["filled"]
    assert contents(waiting.model) not in (before, contents(other)), "a part has come"
    with source(real) as at:
        waiting.at = (at,)
        assert waiting.fill()["filled"]
    assert contents(waiting.model) == contents(real)
    assert places(waiting.model) == where
    client = weights(4 << 20, seed=5)
    assert receive(client).ok
    assert contents(client) == contents(real)


def test_a_transfer_that_may_still_write_ends_all_filling(
    waiting: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aborted(*_: object) -> None:
        raise UnsafeError("a lane still writes")

    with source(weights()) as at:
        waiting.at = (at,)
        with monkeypatch.context() as patch:
            patch.setattr(Receiver, "receive", aborted)
            assert "a lane still writes" in waiting.fill()["why"]
        assert "restart this instance" in waiting.fill()["why"]


def test_a_reload_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Standby(monkeypatch, hasty=settings(agree_timeout_s=0.05))
    with source(weights()) as at, capture() as lines:
        waiting.at = (at,)
        waiting.fill(lambda **_: eventually(lambda: "netloader.standby.late" in events(lines)))
    (late,) = [line for line in lines if line["event"] == "netloader.standby.late"]
    assert "has not ended within 0.05 s (AGREE_TIMEOUT_S); restart" in late["netloader.detail"]


def test_a_layer_that_is_not_packed_again_is_no_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    model = placeholders()
    vars(model)["cpu_linear"] = "the placeholders, packed"
    waiting = Standby(monkeypatch, model=model)
    with source(weights()) as at:
        waiting.at = (at,)
        for _ in range(2):
            assert "has not packed 1 layers" in waiting.fill()["why"]
            assert not waiting.rank.status()["filled"]


def test_without_a_source_that_delivers_the_reason_is_told(waiting: Standby) -> None:
    with capture() as lines:
        assert "name one, or set SOURCE" in waiting.fill()["why"]
        waiting.at = (gone := closed_port(),)
        report = waiting.fill()
    assert f"{gone}: unreachable" in report["why"]
    assert events(lines).count("netloader.standby.failed") == 2


def test_a_rank_that_has_its_weights_already_only_agrees(waiting: Standby) -> None:
    with source(weights()) as at:
        waiting.at = (at,)
        assert waiting.fill()["filled"]
        waiting.at = ()
        report = waiting.fill(lambda **_: pytest.fail("nothing is to be written"))
    assert report["filled"]
    assert report["bytes"] == 0


def test_it_is_not_filled_when_another_rank_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def only(step: str) -> Any:
        return lambda good, name, *_: good and not name.endswith(step)

    waiting = Standby(monkeypatch, ranks=(0, 1))
    with source(weights()) as at:
        waiting.at = (at,)
        for step in ("received", "written"):
            monkeypatch.setattr(agree, "all_of", only(step))
            report = waiting.fill()
            assert not report["filled"]
            assert "another rank" in report["why"]
            assert not waiting.rank.status()["filled"]


def test_a_rank_that_says_nothing_in_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> bool:
        raise agree.DisagreementError("rank 1 has not said")

    waiting = Standby(monkeypatch, ranks=(0, 1))
    monkeypatch.setattr(agree, "all_of", silent)
    with source(weights()) as at:
        waiting.at = (at,)
        assert waiting.fill()["why"] == "rank 1 has not said"


def test_what_post_processing_let_go_is_kept_after_the_fill_as_the_settings_say() -> None:
    model = Model()
    room = Room(named_tensors(model), manifest_of(named_tensors(model)))
    room.reserve()
    post_process(model)
    named = room.tensors(torch.device("cpu"))
    known = Settings.parse({"LISTEN_HOST": "127.0.0.1", "WEIGHT_CACHE": "no"})
    del room
    with capture() as lines:
        standby.offer_received(model, plan(), Loaded(NOTHING), known, named, ())
    (refused,) = [line for line in lines if line["event"] == "netloader.server.refused"]
    assert "set WEIGHT_CACHE to dram" in str(refused)
    assert not named


def test_what_was_built_does_not_change_with_a_source(waiting: Standby) -> None:
    assert waiting.rank._local.checkpoint.built


# -- what is refused -----------------------------------------------------------------------------


def instance(replicas: int = 1) -> Any:
    return SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=replicas))


@pytest.mark.parametrize(
    ("replicas", "role", "said"), [(1, DRAFT, "draft"), (2, TARGET, "start 2 standby instances")]
)
def test_an_instance_that_could_never_be_filled_is_refused(
    replicas: int, role: str, said: str
) -> None:
    local: Any = SimpleNamespace(role=role)
    with pytest.raises(ConfigError, match=said):
        standby.check(instance(replicas), local, settings(standby=True))
    standby.check(instance(replicas), local, settings())


def test_a_model_whose_tensors_are_not_known_is_refused() -> None:
    local: Any = SimpleNamespace(checkpoint=SimpleNamespace(built=False))
    with pytest.raises(StandbyError, match="cannot be described"):
        StandbyRank(nn.Linear(1, 1), local, plan(), Receiver(settings(), LOGGER, False))


# -- sources that are named ----------------------------------------------------------------------


def test_sources_are_dealt_to_the_ranks() -> None:
    a, b, c, d = (Endpoint("10.0.0.1", port) for port in range(7001, 7005))
    assert dealt([str(a), str(b)], 0, 1) == {0: (a, b)}
    four = [str(each) for each in (a, b, c, d)]
    assert dealt(four, 0, 2) == {0: (a, c)}
    assert dealt(four, 1, 2) == {1: (b, d)}
    assert dealt(four, 5, 2) == {5: (b, d)}, "ranks are numbered on from one replica to the next"
    with pytest.raises(ConfigError, match="3 given, and this instance has 2 ranks"):
        dealt(four[:3], 0, 2)
    with pytest.raises(ConfigError, match="source"):
        dealt(["nonsense"], 0, 1)


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (3, 1), (1, 2)])
def test_a_source_alone_is_for_whichever_rank_asks(tmp_path: Path, rank: int, ranks: int) -> None:
    (address,) = finders_of(dealt(["10.0.0.1:7001"], rank, ranks), rank)
    assert address == Address(Endpoint("10.0.0.1", 7001))
    (files,) = finders_of(dealt([f"file:{tmp_path}/*-{{RANK}}.txt"], rank, ranks), rank)
    assert files == Files(f"{tmp_path}/*-{rank}.txt")
