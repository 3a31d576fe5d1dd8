"""Standby: an engine that has done everything but the weights, and is filled in place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.vllm_plugin.inspect.parity.engine import EngineError
from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import Model, failing, held, made, only, said, serving, sources
from tests.support.ports import free_port
from tests.support.relay import Fault, Relay
from tests.support.zoo import dense, experts
from tests.unit.io.helpers import closed_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

STANDBY = {"STANDBY": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model."""
    return made(tmp_path_factory.mktemp("standby") / "llama", dense.llama(), 1)


@pytest.fixture
def source(
    fork_server: ForkServer, model: Model, tmp_path: Path
) -> Iterator[tuple[Engine, list[str]]]:
    """A server of it."""
    with serving(fork_server, model.full, tmp_path) as pair:
        yield pair


def fill(engine: Engine, *sources: str) -> list[dict[str, Any]]:
    """What every rank says of a fill."""
    reports: list[dict[str, Any]] = engine.rpc("netloader_fill", sources)
    return reports


def test_a_filled_instance_answers_as_its_source_and_is_a_source_itself(
    fork_server: ForkServer, model: Model, source: tuple[Engine, list[str]], tmp_path: Path
) -> None:
    server, at = source
    extra = {**STANDBY, "OUTPUT_PREFIX": f"{tmp_path}/standby-"}
    address = tmp_path / "standby-0.txt"
    with fork_server.engine(model.bare, extra) as standby:
        assert said(standby, "netloader.standby.waiting")
        assert not address.exists()
        assert standby.rpc("netloader_standing") == [{"rank": 0, "filled": False}]
        with pytest.raises(EngineError, match="this instance is on standby"):
            standby.generate()

        (gone,) = fill(standby, str(closed_port()))
        assert not gone["filled"]
        assert "unreachable" in gone["why"]

        (report,) = fill(standby, *at)
        assert report["filled"], report
        assert standby.generate() == server.generate()
        assert held(standby) == held(server)
        with fork_server.engine(model.bare, only([address.read_text()])) as client:
            assert client.generate() == server.generate()


def test_a_fill_that_ends_half_way_can_be_tried_again(
    fork_server: ForkServer, model: Model, source: tuple[Engine, list[str]], tmp_path: Path
) -> None:
    server, at = source
    half = {**STANDBY, "TRANSPORT": "tcp", "STALL_TIMEOUT_S": 2}
    extra = {**half, "OUTPUT_PREFIX": f"{tmp_path}/standby-"}
    with (
        Relay(Endpoint.parse(at[0]), Fault.HOLD, at=1 << 20) as dying,
        fork_server.engine(model.bare, extra) as standby,
    ):
        placeholders = held(standby)
        (report,) = fill(standby, str(dying.endpoint))
        assert not report["filled"]
        assert "no source delivered" in report["why"]
        assert held(standby) != placeholders, "weights are received in place"

        standby.rpc(break_a_layer)
        (report,) = fill(standby, *at)
        assert not report["filled"]
        assert "RuntimeError: broken" in report["why"]
        with pytest.raises(EngineError, match="this instance is on standby"):
            standby.generate()

        (report,) = fill(standby, *at)
        assert report["filled"], report
        assert standby.generate() == server.generate()
        assert held(standby) == held(server)
        address = (tmp_path / "standby-0.txt").read_text()
        with fork_server.engine(model.bare, only([address])) as client:
            assert client.generate() == server.generate()


def test_a_reload_that_fails_is_no_fill_and_the_next_one_is_offered(
    fork_server: ForkServer, model: Model, tmp_path: Path
) -> None:
    extra = {"FALLBACK": "dummy", "OUTPUT_PREFIX": f"{tmp_path}/dummy-"}
    port = free_port()
    with fork_server.engine(model.bare, {**sources([f"127.0.0.1:{port}"]), **extra}) as waiting:
        with fork_server.engine(model.full, {"LISTEN_PORT": port}) as server:
            waiting.rpc(break_the_reload)
            with pytest.raises(EngineError, match="broken"):
                waiting.rpc("reload_weights")
            assert not said(waiting, "netloader.server.offered")
            waiting.rpc("reload_weights")
            assert waiting.generate() == server.generate()
        address = (tmp_path / "dummy-0.txt").read_text()
        with fork_server.engine(model.bare, only([address])) as client:
            assert client.generate() == waiting.generate()


def test_a_checkpoint_that_a_program_reloads_fills_it_too(
    fork_server: ForkServer, model: Model
) -> None:
    with fork_server.engine(model.full, {}) as ordinary:
        expected = ordinary.generate()
    with fork_server.engine(model.bare, STANDBY) as standby:
        standby.rpc("reload_weights", weights_path=str(model.full))
        assert standby.rpc("netloader_standing") == [{"rank": 0, "filled": True}]
        assert standby.generate() == expected


def break_a_layer(worker: Any) -> None:
    """Have the next post-processing of a layer fail, in the midst of others."""
    layer = worker.model_runner.get_model().model.layers[1].mlp.down_proj
    method = layer.quant_method
    process = type(method).process_weights_after_loading

    def fail(processed: Any) -> None:
        if processed is not layer:
            process(method, processed)
            return
        del method.process_weights_after_loading
        raise RuntimeError("broken")

    method.process_weights_after_loading = fail


def break_the_reload(worker: Any) -> None:
    """Have the next reload in place fail where vLLM has begun to write."""
    from vllm.model_executor.model_loader.reload import inplace

    finish = inplace.finalize_layerwise_reload

    def fail(*_: object) -> None:
        inplace.finalize_layerwise_reload = finish
        raise RuntimeError("broken")

    inplace.finalize_layerwise_reload = fail


def test_a_model_that_cannot_be_filled_in_place_is_refused_by_name(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    mixtral = made(tmp_path / "mixtral", experts.mixtral())
    log = failing(fork_server, mixtral.bare, STANDBY)
    assert "STANDBY: vLLM cannot reload" in log
    assert "start this instance without STANDBY" in log


def test_two_ranks_are_filled_both_or_neither(
    fork_server: ForkServer, model: Model, tmp_path: Path
) -> None:
    instance = {"LISTEN_PORT": (port := free_port())}
    with (
        serving(fork_server, model.full, tmp_path, 2, instance) as (server, at),
        fork_server.engine(model.bare, {**STANDBY, "AGREE_TIMEOUT_S": 60}, ranks=2) as standby,
    ):
        reports = fill(standby, at[0], str(closed_port()))
        assert [report["filled"] for report in reports] == [False, False]
        assert "another rank" in reports[0]["why"]
        assert "unreachable" in reports[1]["why"]

        reports = fill(standby, f"127.0.0.1:{port}")
        assert [report["filled"] for report in reports] == [True, True], reports
        assert standby.generate() == server.generate()
