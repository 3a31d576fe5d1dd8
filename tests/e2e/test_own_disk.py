"""What an instance has loaded lies on its disk, and is a source of its next start."""

from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.io.store.cards import CARD, card_in
from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import said, serving
from tests.support import zoo
from tests.support.ports import free_port
from tests.unit.io.helpers import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SMALL = {"SEGMENT_MIB": 1}


def saved(engine: Engine, under: Path) -> Path:
    """The folder that an engine has written."""
    assert eventually(lambda: said(engine, "netloader.save.done"), 60), engine.log()
    (card,) = under.glob(f"*/{CARD}")
    return card.parent


def from_disk(under: Path, peer: str) -> dict[str, Any]:
    return {**SMALL, "SOURCE": [f"file:{under}", peer], "FALLBACK": "never"}


def weights_in(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def spoil(folder: Path) -> None:
    """Change a byte in each segment."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    step = 1 << 19
    for at in range(len(data) - 1, step, -step):
        data[at] ^= 1
    path.write_bytes(data)


def test_a_start_from_the_own_disk_answers_as_its_source_did_and_takes_no_changed_byte(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = zoo.write(tmp_path / "full", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    bare = zoo.write(tmp_path / "bare", zoo.llama_config(), None)
    first, second = tmp_path / "first", tmp_path / "second"
    with fork_server.engine(full, {**SMALL, "SAVE": str(first)}) as engine:
        expected, held = engine.generate(), engine.held()
        before = saved(engine, first)

    dead = f"127.0.0.1:{free_port()}"
    extra = {**from_disk(first, dead), "SAVE": str(second)}
    with serving(fork_server, bare, tmp_path, extra=extra) as (client, (peer,)):
        assert client.generate() == expected
        assert client.held() == held
        assert said(client, "netloader.loader.received", f"file:{before}")
        after = saved(client, second)
        assert card_in(after) is not None
        assert after.name == before.name, "the same model, rank and root"
        spoil(after)

        extra = {**from_disk(second, peer), "SAVE": str(second)}
        with fork_server.engine(bare, extra) as warned:
            assert warned.generate() == expected
            assert warned.held() == held
            assert said(
                warned,
                "netloader.session.closed",
                "netloader.side=client",
                "digest_mismatch",
                f"file:{after}",
            )
            assert said(warned, "netloader.loader.received", peer)
            assert saved(warned, second) == after
            assert weights_in(after) == weights_in(before), "written again, because it was refused"
