"""Folders that `pull` writes and `serve` reads: safetensors files, and what their source said."""

from pathlib import Path
from typing import Final

import msgspec

from netloader.cli.answers import CommandError
from netloader.cli.codes import Code
from netloader.cli.sources import Told
from netloader.fsm.messages import Description

CARD: Final = "netloader.json"
"""Beside the files: identity, facts and manifest of the weights, so that `serve` offers them as
their source did. Names and order of tensors are part of that."""
MOST_BYTES: Final = 1 << 28


def card_of(told: Told) -> bytes:
    """What a source said, to be kept."""
    return msgspec.json.encode(Description(told.identity, told.facts, told.status, told.manifest))


def card_in(folder: Path) -> Description | None:
    """What was kept in a folder; None: nothing.

    Raises:
        CommandError: it cannot be read.
    """
    path = folder / CARD
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MOST_BYTES), type=Description)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problem = f"{path} cannot be read: {error}; remove it, or pull the folder again"
        raise CommandError(Code.FAILED, problem) from error
