"""Folders of weights that hold several parts: one for each role and rank of an instance.

A part is a folder with safetensors files and, if netloader wrote it, a card. `netloader pull`
writes one part. `netloader snapshot` writes a folder with a sub-folder for each part of an
instance, and with the other files of the model beside them.
"""

from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from netloader.errors import WeightsError
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Progress
from netloader.io.store.cards import CARD, Card, card_in
from netloader.io.store.composed import ComposedStore, map_in
from netloader.io.store.digests import ALGORITHMS
from netloader.io.store.files import FileStore


@dataclass(frozen=True, slots=True)
class Part:
    """The weights of one model on one rank, mapped into memory, and what is known of them."""

    folder: Path
    identity: Identity
    card: Card | None
    store: FileStore | ComposedStore

    @property
    def proof(self) -> Progress | None:
        """The digests that all its bytes matched when they were written.

        None if the card has none, or none that this process can compute.
        """
        status = self.card.status if self.card else None
        if self.card is None or status is None or not self.card.segment_digests:
            return None
        if status.digest_algorithm not in ALGORITHMS:
            return None
        return Progress(status.digest_algorithm, status.segment_bytes, self.card.segment_digests)


def parts_in(folder: Path) -> tuple[Path, ...]:
    """The parts of a folder: the folder itself, or its sub-folders with a card, by their names.

    Raises:
        WeightsError: it is no folder, or there is no part in it.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder} is no folder; give one with *.safetensors files")
    own = (folder,) if (folder / CARD).exists() or any(folder.glob("*.safetensors*")) else ()
    below = sorted(card.parent for card in folder.glob(f"*/{CARD}"))
    found = own + tuple(each for each in below if not each.name.startswith("."))
    if not found:
        raise WeightsError(f"{folder} has no *.safetensors files, and no sub-folder with {CARD}")
    return found


def open_part(folder: Path, checkpoint: Path | None = None) -> Part:
    """Map a part into memory; nothing of its weights is read.

    Without a card its identity is the name of the folder. One with a map is composed from the
    `checkpoint`, by default the one that it was compared with.

    Raises:
        WeightsError: the card or a file is damaged, or they do not fit each other.
        OSError: a file cannot be read.
    """
    card = card_in(folder)
    identity = card.identity if card else Identity({"model": folder.resolve().name})
    return Part(folder, identity, card, _store(folder, card, checkpoint))


def _store(folder: Path, card: Card | None, checkpoint: Path | None) -> FileStore | ComposedStore:
    manifest = card.manifest if card else None
    rank_map = map_in(folder) if manifest else None
    if manifest is None or rank_map is None:
        return FileStore.open(folder, manifest)
    if checkpoint is not None:
        rank_map = structs.replace(rank_map, checkpoint=str(checkpoint))
    return ComposedStore.open(folder, manifest, rank_map)
