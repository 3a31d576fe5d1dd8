"""Write a map of one rank's tensors, and the bytes that the checkpoint does not have."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from netloader.fsm.manifest import Extent, Manifest
from netloader.io.store.blocks import BlockStore
from netloader.io.store.composed import Piece, RankMap
from netloader.io.store.files import FileStore
from netloader.io.store.headers import spec_of
from netloader.io.store.matching import Matcher


def compose(folder: Path, store: BlockStore, matcher: Matcher, checkpoint: Path) -> int:
    """Make a folder with the map of what a store holds, and with what the checkpoint lacks.

    The map is not proven: compare the digests of what it composes.

    Returns:
        How many bytes are kept in the folder.

    Raises:
        WeightsError, OSError: it cannot be written.
        TransferError: the disk is full.
    """
    found: dict[str, tuple[Piece, ...]] = {}
    own: dict[str, Tensor] = {}
    for index in store.manifest.payload:
        spec, block = store.manifest.tensors[index], store.block(index)
        pieces = matcher.pieces_of(spec, block)
        found[spec.name] = pieces or (Piece("", 0, spec.nbytes, 1, spec.nbytes),)
        if kept := [*_kept(found[spec.name], block)]:
            own[spec.name] = torch.cat(kept)
    _write(folder, own)
    RankMap(str(checkpoint.absolute()), found).write(folder)
    return sum(each.nbytes for each in own.values())


def _kept(pieces: Iterable[Piece], block: Tensor) -> Iterable[Tensor]:
    """The bytes of a tensor that no file has, in order."""
    at = 0
    for piece in pieces:
        if piece.is_own:
            yield block[at : at + piece.nbytes]
        at += piece.nbytes


def _write(folder: Path, own: dict[str, Tensor]) -> None:
    if not own:
        folder.mkdir(parents=True)
        return
    specs = [spec_of(name, torch.uint8, (block.nbytes,)) for name, block in own.items()]
    store = FileStore.create(folder, Manifest(tuple(specs)))
    for index, block in enumerate(own.values()):
        store.place(Extent(index, 0, block.nbytes)).copy_(block)
    store.complete()
    store.close()
