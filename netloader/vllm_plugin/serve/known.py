"""What a rank knows once it is warm, and offers beside its weights: hints and compiled code."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from netloader.files.caches import compiled_in
from netloader.files.folder import published, tell
from netloader.files.hints import HINTS, KV_SIZE, KvSize, publish_hints
from netloader.files.regular import read_regular
from netloader.files.rules import FilesError
from netloader.fsm.identity import Identity
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions
from netloader.log import emit


@dataclass(frozen=True)
class Known:
    """What others may take over from this rank, of a model."""

    model: str
    """What instances call it."""
    fingerprint: Identity
    """The conditions under which code was compiled."""
    folders: Mapping[str, Path]
    """Where that is, by keys; empty where nothing is compiled."""
    inspections: Mapping[str, Path]
    """What vLLM found in the classes of the model, by the names of hints."""
    skip: Callable[[str], bool]
    """Whether a folder among compiled code is not of this rank."""

    def publish(self, kv: KvSize | None, options: ServerOptions) -> Iterator[PublishedModel]:
        """Describe all of it for clients. Reads and copies files; the log says what there is."""
        hints = {n: read_regular(p, HINTS.most_file_bytes) for n, p in self.inspections.items()}
        hints |= {KV_SIZE: kv.render()} if kv else {}
        if hints:
            yield publish_hints(hints, self.model, options)
        if not self.folders:
            return
        try:
            store, left_out = compiled_in(self.folders, self.skip)
        except (FilesError, OSError) as error:
            fields = {"netloader.detail": f"compiled code is not offered: {error}"}
            emit(options.logger, "netloader.caches.refused", fields)
            return
        tell(store, left_out, "compiled code", options.logger)
        yield published(store, self.fingerprint, options)
