"""Draft models. A broken one costs acceptance and nothing else, so that is what is compared."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.vllm_plugin.inspect.parity.controls import erase
from tests.e2e.engines import (
    NEEDS_DRAFTS,
    NEEDS_LATENT_ATTENTION,
    NEEDS_STAGES,
    Engine,
    ForkServer,
)
from tests.e2e.source_logs import (
    STAGES,
    Model,
    accepted,
    inventory,
    only,
    received,
    said,
    serving,
    sources,
    written,
)
from tests.support.ports import free_port
from tests.support.relay import Fault, Relay
from tests.support.zoo import dense, drafts

pytestmark = [pytest.mark.engine, NEEDS_DRAFTS, pytest.mark.timeout(300)]

DRAFT, TARGET = "netloader.role=draft", "netloader.role=target"


@dataclass(frozen=True, slots=True)
class Duo:
    """A target and its draft."""

    method: str
    target: Model
    draft: Model | None
    """None when it is a part of the target."""

    def options(self, draft: Path | None) -> dict[str, Any]:
        """What vLLM has to be told."""
        known: dict[str, Any] = {"method": self.method, "num_speculative_tokens": 1}
        if draft is not None:
            known |= {"model": str(draft), "num_speculative_tokens": 2}
        return {"speculative_config": known}

    @property
    def full(self) -> dict[str, Any]:
        return self.options(self.draft.full if self.draft else None)

    @property
    def bare(self) -> dict[str, Any]:
        return self.options(self.draft.bare if self.draft else None)


def duo(method: str, folder: Path) -> Duo:
    """A target that repeats itself, and a draft that foresees it by this method."""
    if method == "mtp":
        return Duo(method, written(folder / "mtp", *drafts.mtp()), None)
    target = drafts.echo(drafts.deep_llama() if method == "eagle3" else dense.llama())
    made = {"draft_model": target, "eagle": drafts.eagle(), "eagle3": drafts.eagle3(target)}
    return Duo(method, written(folder / "target", *target), written(folder / method, *made[method]))


@pytest.fixture(scope="module")
def eagle(tmp_path_factory: pytest.TempPathFactory) -> Duo:
    return duo("eagle", tmp_path_factory.mktemp("eagle"))


@pytest.fixture(scope="module")
def server(
    fork_server: ForkServer, eagle: Duo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, list[str]]]:
    """An EAGLE engine, on a port that the system chose."""
    scratch = tmp_path_factory.mktemp("server")
    with serving(fork_server, eagle.target.full, scratch, **eagle.full) as (engine, at):
        yield engine, at


def both_fill(client: Engine, server: Engine, endpoint: str) -> None:
    """The client was filled with target and draft from one address, and drafts as the server."""
    for role in (TARGET, DRAFT):
        assert len(said(server, "netloader.server.offered", endpoint, role)) == 1
        assert received(client, endpoint, role) == 1
    proposed, good = accepted(server)
    assert 0 < good <= proposed
    assert accepted(client) == (proposed, good)
    assert client.generate() == server.generate()
    client.rpc(erase, "draft")
    assert accepted(client)[1] < good


def test_eagle_from_a_free_port(fork_server: ForkServer, eagle: Duo, server: Any) -> None:
    engine, at = server
    with fork_server.engine(eagle.target.bare, only(at), **eagle.bare) as client:
        both_fill(client, engine, at[0])


@pytest.mark.parametrize(
    "method", ["draft_model", "eagle3", pytest.param("mtp", marks=NEEDS_LATENT_ATTENTION)]
)
def test_both_roles_from_the_port_that_was_asked_for(
    fork_server: ForkServer, tmp_path: Path, method: str
) -> None:
    two, port = duo(method, tmp_path), free_port()
    asked = {"LISTEN_PORT": port}
    with (
        serving(fork_server, two.target.full, tmp_path, extra=asked, **two.full) as (server, at),
        fork_server.engine(two.target.bare, only(at), **two.bare) as client,
    ):
        assert at == [f"127.0.0.1:{port}"]
        both_fill(client, server, at[0])


def test_a_server_without_a_draft_fills_the_target_alone(
    fork_server: ForkServer, eagle: Duo, server: Any, tmp_path: Path
) -> None:
    """The draft is loaded the ordinary way, from its own folder."""
    with (
        serving(fork_server, eagle.target.full, tmp_path) as (_, at),
        fork_server.engine(eagle.target.bare, sources(at), **eagle.full) as client,
    ):
        assert received(client, TARGET) == received(client) == 1
        assert len(said(client, "netloader.fallback.engaged")) == 1
        assert accepted(client) == accepted(server[0])


def test_a_draft_comes_after_its_target_was_refused(
    fork_server: ForkServer, eagle: Duo, server: Any, tmp_path: Path
) -> None:
    config, tensors = drafts.echo(dense.llama())
    other = written(tmp_path / "other", {**config, "rms_norm_eps": 1e-6}, tensors)
    with fork_server.engine(other.full, sources(server[1]), **eagle.bare) as client:
        assert received(client, DRAFT) == received(client) == 1
        assert "differing: config" in client.log()
        assert accepted(client)[1] > 0


def test_a_draft_comes_after_its_target_was_garbled(
    fork_server: ForkServer, eagle: Duo, server: Any
) -> None:
    """The relay strikes once, in the target's first bytes; both roles go through it."""
    engine, at = server
    with Relay(Endpoint.parse(at[0]), Fault.GARBLE, 1000) as relay:
        through = {**sources([str(relay.endpoint)]), "TRANSPORT": "tcp"}
        with fork_server.engine(eagle.target.full, through, **eagle.bare) as client:
            assert "netloader.reason=digest_mismatch" in client.log()
            assert received(client, DRAFT) == received(client) == 1
            assert accepted(client) == accepted(engine)
            assert client.generate() == engine.generate()


def test_each_rank_drafts_with_its_own_share(
    fork_server: ForkServer, eagle: Duo, tmp_path: Path
) -> None:
    with (
        serving(fork_server, eagle.target.full, tmp_path, ranks=2, **eagle.full) as (server, at),
        fork_server.engine(eagle.target.bare, only(at), ranks=2, **eagle.bare) as client,
    ):
        for endpoint in at:
            assert received(client, endpoint, TARGET) == received(client, endpoint, DRAFT) == 1
        assert inventory(client) == inventory(server)
        assert accepted(client) == accepted(server)
        assert accepted(client)[1] > 0


@NEEDS_STAGES
def test_only_the_last_stage_asks_for_a_draft(fork_server: ForkServer, tmp_path: Path) -> None:
    """It loads; vLLM cuts the draft itself into stages, so that its forward fails.

    Without what `inside` adds, vLLM looks for a draft on the first stage as well, and does not
    start; with EAGLE it gives a layer of the draft the name of one of the target's.
    """
    two = duo("draft_model", tmp_path)
    with (
        serving(fork_server, two.target.full, tmp_path, ranks=2, **STAGES, **two.full) as (
            server,
            at,
        ),
        fork_server.engine(two.target.bare, only(at), ranks=2, **STAGES, **two.bare) as client,
    ):
        assert received(client, DRAFT) == received(client, DRAFT, at[1]) == 1
        assert received(client, TARGET) == 2
        assert inventory(client) == inventory(server)
