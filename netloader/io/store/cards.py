"""Cards: what the source of some weights said of them, in a file beside those of the weights.

With its card a folder is offered as its source was: same identity, facts, names and order of
tensors, and the same digests, which every segment matched when it was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from netloader.errors import WeightsError
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, root_digest
from netloader.fsm.messages import Status

Content = TypeVar("Content")

CARD: Final = "netloader.json"
MOST_BYTES: Final = 1 << 28
"""Of a file that is read."""


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of the weights in a folder. Cards of older versions have no digests."""

    identity: Identity
    facts: Mapping[str, str] = field(default_factory=dict)
    status: Status | None = None
    """As of the copy; layout, segments, digest algorithm and root are those of the files."""
    manifest: Manifest | None = None
    segment_digests: tuple[str, ...] = ()
    """Those that the bytes were verified against, of `status.segment_bytes` each."""
    served_name: str = ""
    """What requests called the model; empty where the source did not say."""

    @property
    def layout(self) -> str:
        """The form of the weights."""
        return self.status.layouts[0] if self.status and self.status.layouts else "raw"

    def render(self) -> bytes:
        """As it is kept in a file."""
        return msgspec.json.encode(self)

    def write(self, folder: Path) -> None:
        """Put it beside the files of the weights, by one rename.

        Raises:
            OSError: it cannot be written.
        """
        hidden = folder / f".{CARD}"
        hidden.write_bytes(self.render())
        hidden.replace(folder / CARD)


def card_in(folder: Path) -> Card | None:
    """The card of a folder; None without one.

    Raises:
        WeightsError: it cannot be read, or its digests are not those of its root.
    """
    path = folder / CARD
    card = decoded(path, Card, "remove it, or copy the weights again")
    if card is None:
        return None
    digests = card.segment_digests
    if digests and (card.status is None or card.status.root != root_digest(digests)):
        raise WeightsError(f"{path} is damaged: its digests have another root; copy it again")
    return card


def decoded(path: Path, kind: type[Content], remedy: str) -> Content | None:
    """What a file of JSON beside weights says; None without one.

    Raises:
        WeightsError: it cannot be read; the message ends with the `remedy`.
    """
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MOST_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}; {remedy}") from error
