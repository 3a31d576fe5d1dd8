"""A source that accepts and says nothing costs a start one deadline, though it is asked twice."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from netloader.config import Endpoint
from netloader.io.clock import monotonic
from netloader.log import capture
from netloader.vllm_plugin.identity.reading import read_config
from netloader.vllm_plugin.load.loader import NetLoader, NoWeightsError
from netloader.vllm_plugin.load.plan import plan_load
from netloader.wire.connection import LINGER_S
from tests.support import zoo
from tests.unit.vllm_plugin.helpers import identity, line_of
from tests.unit.vllm_plugin.load.test_loader import config_of, load_config
from tests.unit.vllm_plugin.load.test_plan import model_config, vllm_config

HANDSHAKE_S = 3.0


def test_a_source_silent_in_describe_is_not_asked_again_and_is_named(tmp_path: Path) -> None:
    tensors = zoo.llama_tensors(1, torch.bfloat16)
    config = config_of(zoo.write(tmp_path / "m", zoo.llama_config(), tensors))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = Endpoint("127.0.0.1", listener.getsockname()[1])
        loader = NetLoader(
            load_config(
                HANDSHAKE_TIMEOUT_S=HANDSHAKE_S,
                FALLBACK="never",
                SOURCE=[{"device_id": 0, "sources": [str(source)]}],
            )
        )
        begun = monotonic()
        local = read_config(vllm_config(), model_config(), None)
        found = plan_load(local, loader._settings, loader._receiver.ask, loader._logger)
        loader._plan = replace(found, identify=lambda layout, _: identity(layout=layout))
        with capture() as lines, pytest.raises(NoWeightsError) as raised:
            loader.load_weights(nn.Linear(4, 4), config.model_config)
        took = monotonic() - begun

    assert HANDSHAKE_S < took < HANDSHAKE_S + LINGER_S + 1.5
    history = f"{source}: deadline_passed (in handshake)"
    assert history in str(raised.value)
    assert history in line_of(lines, "netloader.fallback.engaged")["netloader.detail"]
