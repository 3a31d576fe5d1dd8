"""What OUTPUT_PREFIX files say stays true: after a SIGKILL, and when two instances share one."""

import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from netloader.config import Endpoint
from tests.e2e.engines import ForkServer
from tests.support import zoo
from tests.unit.io.helpers import eventually
from tests.unit.vllm_plugin.helpers import Model, serve, settings

PATIENCE_S = 30.0


def accepts(text: str) -> bool:
    """Whether somebody listens at an address."""
    endpoint = Endpoint.parse(text)
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_the_address_of_a_killed_engine_does_not_outlive_the_next_start(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = zoo.write(tmp_path / "m", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    file, log = tmp_path / "r-0.txt", tmp_path / "log"
    prefix = {"OUTPUT_PREFIX": f"{tmp_path}/r-"}
    with fork_server.engine(full, {**prefix, "LOG_JSON": str(log)}):
        stale = file.read_text()
        assert accepts(stale)
        os.kill(json.loads(log.read_text().splitlines()[0])["process.pid"], signal.SIGKILL)
        assert eventually(lambda: not accepts(stale), PATIENCE_S)
    assert file.read_text() == stale

    with fork_server.engine(full, {**prefix, "LISTEN_PORT": 80}):  # below 1024: no listener
        assert not file.exists()
    with fork_server.engine(full, prefix):
        assert accepts(file.read_text())


def open_shop(prefix: str) -> nn.Module:
    """A model that is served, and says where."""
    model = Model()
    serve(model, settings(output_prefix=prefix))
    return model


def test_a_server_that_ends_leaves_the_address_file_of_a_later_one(tmp_path: Path) -> None:
    # As when an instance is replaced by a new one with the same settings before it is stopped.
    file = tmp_path / "r-0.txt"
    old = open_shop(f"{tmp_path}/r-")
    first = file.read_text()
    new = open_shop(f"{tmp_path}/r-")
    second = file.read_text()
    assert first != second
    del old
    gc.collect()
    assert gone(lambda: not accepts(first))
    assert file.read_text() == second
    assert accepts(second)
    del new
    gc.collect()
    assert gone(lambda: not file.exists() and not accepts(second))


def gone(condition: Callable[[], bool]) -> bool:
    """Whether it is so soon."""
    return eventually(condition, PATIENCE_S)
