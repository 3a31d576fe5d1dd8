"""What a rank on standby waits for: what is looked up, and folders; not what is written."""

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.log import capture
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.load.receiving import Receiver
from netloader.vllm_plugin.load.standby import StandbyRank
from tests.support.registries import redis_server
from tests.unit.io.helpers import closed_port
from tests.unit.vllm_plugin.helpers import Lines, events, plan
from tests.unit.vllm_plugin.load.test_folders import local, saved
from tests.unit.vllm_plugin.load.test_plan import LOGGER
from tests.unit.vllm_plugin.load.test_standby import placeholders

pytestmark = pytest.mark.usefixtures("worker_process")


class Waiting:
    """A rank that waits for the sources of its settings."""

    def __init__(self, source: object) -> None:
        settings = Settings.parse({"SOURCE": source, "STANDBY": True})
        self._model = placeholders()
        receiver = Receiver(settings, LOGGER, False)
        self._rank = StandbyRank(self._model, local(), plan(), receiver)

    def finds(self) -> bool:
        return self._rank.finds_sources()


def refusals(lines: Lines) -> list[str]:
    event = "netloader.folder.refused"
    return [str(line["netloader.detail"]) for line in lines if line["event"] == event]


def test_a_folder_that_is_there_or_appears_is_noticed(tmp_path: Path) -> None:
    alone, pattern = Waiting(f"file:{tmp_path}/nvme"), Waiting(f"file:{tmp_path}/nv*")
    assert not alone.finds()
    assert not pattern.finds()
    mine = saved(tmp_path / "nvme")
    assert alone.finds()
    assert pattern.finds()
    assert Waiting(f"file:{mine}").finds()


def test_a_folder_that_is_not_whole_or_another_rank_s_is_none_and_the_log_says_why_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "nvme").mkdir()
    waiting = Waiting(f"file:{tmp_path}/nvme")
    with capture() as lines:
        assert [waiting.finds() for _ in range(3)] == [False] * 3
        (why,) = refusals(lines)
        assert "no *.safetensors" in why

        other = saved(tmp_path / "nvme", {"tensor_parallel": "1 of 2"})
        assert [waiting.finds() for _ in range(3)] == [False] * 3
        _, why = refusals(lines)
        assert "tensor_parallel" in why

        mine = saved(tmp_path / "nvme", seed=3)
        weights = (mine / "model.safetensors").read_bytes()
        (mine / "model.safetensors").write_bytes(weights[:100])
        assert [waiting.finds() for _ in range(3)] == [False] * 3
        assert len(refusals(lines)) == 3
        (mine / "model.safetensors").write_bytes(weights)
        assert waiting.finds()
        shutil.rmtree(other)
        shutil.rmtree(mine)
        assert not waiting.finds()
    assert "netloader.driver.error" not in events(lines)


def test_an_address_in_a_file_is_noticed_when_somebody_answers_there(tmp_path: Path) -> None:
    waiting = Waiting(f"file:{tmp_path}/*.txt")
    (tmp_path / "a.txt").write_text(str(closed_port()))
    assert not waiting.finds()
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "b.txt").write_text(str(Endpoint(*server.getsockname())))
        assert waiting.finds()


@pytest.mark.parametrize("by_rank", [False, True])
def test_what_is_written_is_not_waited_for_whether_it_answers_or_not(
    tmp_path: Path, by_rank: bool
) -> None:
    def named(*sources: str) -> Any:
        return [{"device_id": 0, "sources": sources}] if by_rank else sources

    with socket.create_server(("127.0.0.1", 0)) as server:
        up = str(Endpoint(*server.getsockname()))
        with redis_server() as (at, _):
            assert not Waiting(named(str(closed_port()), up, f"redis://{at}/llm")).finds()
        mixed = Waiting(named(up, f"file:{tmp_path}/nvme"))
        assert not mixed.finds()
        saved(tmp_path / "nvme")
        assert mixed.finds()


@pytest.mark.parametrize("source", ["10.0.0.1:1", [{"device_id": 1, "sources": ["a.test:1"]}]])
def test_a_rank_for_which_nothing_is_looked_up_says_that_it_waits_for_a_signal(
    source: object,
) -> None:
    waiting = Waiting(source)
    with capture() as lines:
        assert [waiting.finds() for _ in range(2)] == [False] * 2
    (why,) = [line["netloader.detail"] for line in lines]
    assert "`netloader fill`" in str(why)
