"""Folders of this host that are sources, and what is asked of them in tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from netloader.config import Endpoint, Secret
from netloader.io import ClientOptions, Outcome, Server, ServerOptions, fill
from netloader.io.own_folder import OwnFolder
from netloader.io.published import PublishedModel
from netloader.io.saving import Saved, save
from netloader.io.store.parts import open_part
from tests.unit.io.helpers import FAST, MIB, random, sealed

IDENTITY = {"model": "tiny", "role": "target"}
Tensors = dict[str, torch.Tensor]
Lines = list[dict[str, Any]]


def weights(seed: int = 1, mib: int = 1) -> Tensors:
    return {f"layer.{i}": random(mib * MIB // 4, seed=seed + i) for i in range(2)}


def published(server: Server) -> PublishedModel:
    opened = sealed(server)._open
    assert opened is not None
    (model,) = opened[1].published_models
    return model


def kept(server: Server, under: Path) -> Saved:
    return save(published(server), under, "tiny")


@contextlib.contextmanager
def opened(folder: Path, token: Secret | None = None) -> Iterator[OwnFolder]:
    own = OwnFolder(open_part(folder), ServerOptions(deadlines=FAST, token=token))
    try:
        yield own
    finally:
        own.close()


def filled(
    into: Tensors, *sources: Endpoint, identity: dict[str, str] = IDENTITY, **options: Any
) -> Outcome:
    return fill(into, sources, identity, ClientOptions(deadlines=FAST, **options))


def empty(like: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in like.items()}


def same(one: Tensors, other: Tensors) -> bool:
    return all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


def changed(folder: Path, at: int = -1) -> None:
    """Change one byte of a folder's weights, as a disk may."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def fills(folder: Path, model: Tensors, identity: dict[str, str] = IDENTITY) -> bool:
    """Whether a folder alone fills a model."""
    into = empty(model)
    with opened(folder) as own:
        return filled(into, own.endpoint, identity=identity).ok and same(into, model)


def everything(under: Path) -> list[str]:
    return sorted(path.name for path in under.iterdir() if not path.name.endswith(".lock"))


def why(captured: Lines) -> str:
    """Why a folder was refused last."""
    refused = [line for line in captured if line["event"] == "netloader.folder.refused"]
    return str(refused[-1]["netloader.detail"])


# -- saving --------------------------------------------------------------------------------------
