"""A rank becomes a server, says where, and stops when its model is gone or changed."""

import gc
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Offer
from netloader.io import fill
from netloader.log import capture
from netloader.vllm_plugin import publish
from netloader.vllm_plugin.layout import RawSnapshot
from netloader.vllm_plugin.settings import CachePolicy, Settings
from tests.unit.io.helpers import Peer, hello

IDENTITY = Identity({"model": "tiny"})
PATIENCE_S = 30.0


def settings(**changes: Any) -> Settings:
    return replace(Settings.parse({"LISTEN_HOST": "127.0.0.1"}), **changes)


def open_shop(
    module: nn.Module, options: Settings, change: Callable[[], None] | None = None
) -> None:
    snapshot = RawSnapshot(module, options, ())
    if change is not None:
        change()
    publish.Shop(options, IDENTITY, {}, 0).open(module, snapshot)


def eventually(condition: Callable[[], bool]) -> bool:
    pause = threading.Event()
    return any(condition() or pause.wait(0.05) for _ in range(int(PATIENCE_S / 0.05)))


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in lines]


def test_the_address_file_tells_the_truth_and_goes_with_the_model(tmp_path: Path) -> None:
    module = nn.Linear(4, 4)
    prefix = str(tmp_path / "deep" / "rank-")
    open_shop(module, settings(output_prefix=prefix))
    file = Path(f"{prefix}0.txt")
    endpoint = Endpoint.parse(file.read_text())
    twin = nn.Linear(4, 4)
    assert fill(twin, [endpoint], IDENTITY).ok
    assert torch.equal(twin.weight, module.weight)
    del module
    gc.collect()
    assert eventually(lambda: not file.exists())
    assert eventually(lambda: not _accepts(endpoint))
    assert list(file.parent.iterdir()) == []


def _accepts(endpoint: Endpoint) -> bool:
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=5).close()
    except OSError:
        return False
    return True


def test_what_is_offered_was_sealed_before_post_processing(tmp_path: Path) -> None:
    # From the first connection on: there is no moment at which a client meets anything else.
    module = nn.Linear(300, 300)
    before = module.weight.detach().clone()
    options = settings(output_prefix=f"{tmp_path}/r-")
    snapshot = RawSnapshot(module, options, ())
    module.weight = nn.Parameter(before.flip(0).contiguous(), requires_grad=False)
    publish.Shop(options, IDENTITY, {}, 0).open(module, snapshot)

    endpoint = Endpoint.parse((tmp_path / "r-0.txt").read_text())
    with Peer.call(endpoint) as peer:
        peer.say(hello(identity=IDENTITY.hard))
        offer = peer.hear()
        assert isinstance(offer, Offer)
        assert offer.digests == snapshot.digests
    twin = nn.Linear(300, 300)
    assert fill(twin, [endpoint], IDENTITY).ok
    assert torch.equal(twin.weight, before)
    with capture() as lines:
        del module
        gc.collect()
        assert eventually(lambda: "netloader.listener.stopped" in names(lines))


def test_a_busy_port_is_a_line_in_the_log() -> None:
    module = nn.Linear(4, 4)
    with socket.create_server(("127.0.0.1", 0)) as busy, capture() as lines:
        open_shop(module, settings(listen_port=busy.getsockname()[1]))
    assert names(lines) == ["netloader.listener.failed"]
    assert "LISTEN_PORT" in lines[0]["netloader.remedy"]


def test_weights_changed_after_loading_are_withdrawn(tmp_path: Path) -> None:
    module = nn.Linear(4, 4)

    def change() -> None:
        module.weight.data.zero_()

    with capture() as lines:
        open_shop(module, settings(output_prefix=f"{tmp_path}/r-"), change)
        assert eventually(lambda: "netloader.listener.stopped" in names(lines))
    withdrawn = next(line for line in lines if line["event"] == "netloader.server.withdrawn")
    assert "weight" in withdrawn["netloader.detail"]
    assert not (tmp_path / "r-0.txt").exists()


def test_lost_parameters_are_named_and_nothing_listens() -> None:
    module = nn.Linear(4, 4)

    def change() -> None:
        module.weight = nn.Parameter(torch.zeros(4, 4))

    with capture() as lines:
        open_shop(module, settings(weight_cache=CachePolicy.NO), change)
    assert names(lines) == ["netloader.server.refused"]
    assert "WEIGHT_CACHE" in lines[0]["netloader.remedy"]


def test_a_bug_of_ours_never_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(publish, "publish", broken)
    with capture() as lines:
        open_shop(nn.Linear(4, 4), settings())
    assert names(lines) == ["netloader.driver.error"]


def test_an_unwritable_prefix_does_not_stop_the_server(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    module = nn.Linear(4, 4)
    with capture() as lines:
        open_shop(module, settings(output_prefix=f"{tmp_path}/file/r-"))
    assert "netloader.server.offered" in names(lines)
    assert any("OUTPUT_PREFIX" in str(line.get("netloader.detail")) for line in lines)


@pytest.mark.parametrize(
    ("port", "rank", "answer"),
    [(None, 3, True), (1024, 0, True), (1023, 0, False), (65535, 0, True), (65535, 1, False)],
)
def test_which_ports_mean_no_listener(port: int | None, rank: int, answer: bool) -> None:
    with capture() as lines:
        assert publish.wanted(settings(listen_port=port), rank) is answer
    assert bool(lines) is not answer
