"""Save what a rank has loaded, behind its start: what it offers is what is written."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Final

from netloader.discovery.keys import key_of
from netloader.fsm.identity import Identity
from netloader.io.background import in_background
from netloader.io.published import PublishedModel
from netloader.io.saving import SaveError, save
from netloader.log import Logger, emit

NAME_CHARS: Final = 64
NOT_SERVED: Final = (
    "only what this rank serves is known to be what was loaded, and it serves nothing of this "
    "model, as the log says; see LISTEN_PORT and WEIGHT_CACHE"
)


@dataclass(frozen=True, slots=True)
class Saving:
    """Where a model is saved: in a sub-folder of `under`, whose name begins with `name`."""

    under: Path
    name: str
    damaged: frozenset[Path] = frozenset()
    """Folders, as resolved paths, from which this load got bytes that do not match their cards."""

    @classmethod
    def of(
        cls, under: Path, identity: Identity, damaged: frozenset[Path] = frozenset()
    ) -> "Saving":
        """The place of one model, one role and one rank, whatever else is saved there."""
        key = key_of(identity)
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", key.model)[-NAME_CHARS:].strip(".-")
        return cls(under, f"{plain or 'model'}-{identity.role}-{key.digest}", damaged)

    def begin(self, published: PublishedModel, logger: Logger) -> Thread:
        """Save on a thread of low priority; the log says how that ended."""
        return in_background("netloader-save", partial(self._save, published, logger))

    def _save(self, published: PublishedModel, logger: Logger) -> None:
        try:
            saved = save(published, self.under, self.name, self.damaged)
        except SaveError as error:
            tell_not_saved(logger, str(error))
            return
        fields: dict[str, object] = {
            "netloader.folder": str(saved.folder),
            "netloader.saved_bytes": saved.nbytes,
            "netloader.duration_s": round(saved.seconds, 3),
            "netloader.removed": len(saved.removed),
        }
        if saved.left:
            fields["netloader.detail"] = "; ".join(saved.left)
        emit(logger, "netloader.save.done", fields)


def tell_not_saved(logger: Logger, why: str = NOT_SERVED) -> None:
    """Log that nothing was saved."""
    emit(logger, "netloader.save.failed", {"netloader.detail": why})
