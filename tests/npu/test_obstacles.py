"""Settings of the engine with which torch_npu would build our groups out of the engine's."""

from typing import Any

import pytest

from netloader.io import transports
from netloader.log import get_logger


def test_an_npu_gets_hccl() -> None:
    assert transports.suited("npu", get_logger("client")) == ("hccl", "tcp", "gloo")


@pytest.mark.parametrize(
    ("name", "value"), [("RANK_TABLE_FILE", "/etc/hccl.json"), ("ROOTINFO_SUBCOMM_ENABLE", "1")]
)
def test_a_group_is_not_made_of_the_engines(
    monkeypatch: pytest.MonkeyPatch, captured: list[dict[str, Any]], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    assert transports.suited("npu", get_logger("client")) == ("tcp", "gloo")

    (line,) = captured
    assert line["event"] == "netloader.transport.left_out"
    assert name in line["netloader.detail"]
    with pytest.raises(ValueError, match=name):
        transports.named("hccl")
