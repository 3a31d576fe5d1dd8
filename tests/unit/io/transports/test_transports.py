"""The registry: transports by name, those that suit a device, and one for a host to add its own."""

import sys
from typing import Any, TypeAlias

import pytest
import torch

from netloader.io.transports import TRANSPORTS, named, suited
from netloader.io.transports.one_sided import OneSided
from netloader.io.transports.tcp import TCP, Tcp
from netloader.log import get_logger

Lines: TypeAlias = list[dict[str, Any]]


@pytest.mark.parametrize("name", ["tcp", "gloo", "shm"])
def test_what_works_everywhere_is_there(name: str) -> None:
    assert named(name).name == name
    assert named(name) is named(name)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"'pigeon'; there are: gloo, hccl, mooncake, nccl, nixl, shm, tcp"
    ):
        named("pigeon")


@pytest.fixture
def no_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a torch for the CPU."""
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)


@pytest.mark.usefixtures("no_nccl")
def test_a_library_that_is_not_here_is_named() -> None:
    with pytest.raises(ValueError, match=r"nccl cannot be used here: .* torch has no NCCL"):
        named("nccl")


def test_a_host_may_replace_a_transport() -> None:
    own = Tcp()
    with TRANSPORTS.registered(own):
        assert named("tcp") is own
    assert named("tcp") is TCP


@pytest.mark.parametrize("name", ["nixl", "mooncake"])
def test_an_engine_that_is_not_installed_is_refused_with_the_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if ".cache" not in p])
    monkeypatch.delitem(sys.modules, name, raising=False)
    remedy = rf"package {name} is not installed \(pip install 'vllm-netloader\[{name}\]'\)"
    with pytest.raises(ValueError, match=remedy):
        named(name)


def test_an_engine_that_asks_for_no_token_is_used_only_by_name(
    monkeypatch: pytest.MonkeyPatch, captured: Lines
) -> None:
    monkeypatch.setattr(OneSided, "obstacle", lambda self: "")
    assert suited("cpu", get_logger("client")) == ("shm", "tcp", "gloo")
    assert captured == []
    assert named("nixl").name == "nixl"


def test_the_transports_of_a_cpu_log_nothing(captured: Lines) -> None:
    assert suited("cpu", get_logger("client")) == ("shm", "tcp", "gloo")
    assert captured == []


@pytest.mark.usefixtures("no_nccl")
def test_a_transport_that_cannot_be_used_is_left_out_and_logged(captured: Lines) -> None:
    assert suited("cuda", get_logger("client")) == ("tcp", "gloo")

    (line,) = captured
    assert line["event"] == "netloader.transport.left_out"
    assert line["netloader.transport"] == "nccl"
    assert "this build of torch has no NCCL" in line["netloader.detail"]
