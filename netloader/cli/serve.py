"""`netloader serve`: a folder of safetensors files as a source, without an engine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from netloader.cli.answers import Answer, CommandError, Form, plain
from netloader.cli.bars import bar
from netloader.cli.codes import Code
from netloader.cli.folders import card_in
from netloader.cli.interrupts import interrupted
from netloader.cli.options import Access
from netloader.discovery.announce import Announcement
from netloader.discovery.base import Candidate, Key, Registry
from netloader.discovery.keys import key_of
from netloader.discovery.urls import registry_of
from netloader.errors import WeightsError
from netloader.files.folder import FolderFiles
from netloader.files.rules import DATA, FilesError
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Segment
from netloader.fsm.messages import Description
from netloader.io.host import boot_id
from netloader.io.listener import ANYWHERE
from netloader.io.publishing import ServerOptions
from netloader.io.server import Server, serve
from netloader.io.snapshot import SessionRecord
from netloader.io.store.files import FileStore
from netloader.log import get_logger
from netloader.units import size

POLL_S = 0.1
"""How often the bar moves, and how long after a signal the end begins."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says; `identity` replaces fields of what the folder says."""

    folder: Path
    host: str
    port: int
    identity: Sequence[str]
    max_clients: int
    publish: str | None
    """The registry that names this server to clients."""
    access: Access


def run(wanted: Wanted, form: Form) -> Answer:
    """Serve until the process is interrupted; says when it is ready, and of each session.

    Raises:
        CommandError: it cannot be served.
    """
    card = card_in(wanted.folder)
    identity = _identity(card.identity if card else None, wanted)
    store = _opened(wanted.folder, card)
    options = _options(wanted.access, wanted.max_clients, card, form)
    registry = _registry(wanted)
    with interrupted() as stop, _begun(wanted, identity, store, options) as server:
        with bar(f"hashing {wanted.folder.name}") as report:
            while not server.wait_ready(POLL_S) and not stop.is_set():
                report(store.read_bytes, store.manifest.nbytes)
        model = server.snapshot().models[0]
        if model.withdrawn:
            raise CommandError(Code.FAILED, f"{wanted.folder} is not served: {model.withdrawn}")
        if not stop.is_set():
            folder = _folder_offered(server, wanted.folder, identity, options)
            form.tell(_ready(server, wanted.folder, model.nbytes, folder))
        with _announced(registry, key_of(identity), server, wanted.max_clients):
            while not stop.wait(POLL_S):
                pass
        model = server.snapshot().models[0]
    data = {"event": "ended", "sessions": model.sessions, "sent_bytes": model.sent_bytes}
    sent = f"{model.sessions} sessions, {size(model.sent_bytes)} sent"
    return Answer(data, (Text(f"Ended: {sent}"),))


def _registry(wanted: Wanted) -> Registry | None:
    if wanted.publish is None:
        return None
    if wanted.host in ANYWHERE:
        raise CommandError(Code.USAGE, "--publish: give --host the address that clients reach")
    try:
        return registry_of(wanted.publish)
    except ValueError as error:
        raise CommandError(Code.USAGE, f"--publish: {error}") from error


@contextmanager
def _announced(registry: Registry | None, key: Key, server: Server, most: int) -> Iterator[None]:
    """Have the registry name the server inside the block, as long as it offers."""
    if registry is None:
        yield
        return

    def offered() -> Candidate | None:
        model = server.snapshot().models[0]
        load = model.clients / most
        return Candidate(server.endpoint, boot_id(), load) if not model.withdrawn else None

    announcement = Announcement(registry, key, offered, get_logger("server"))
    try:
        yield
    finally:
        announcement.end()


class Counted(FileStore):
    """Files, and how many bytes of them were read: at first, to be hashed."""

    read_bytes = 0

    def views(self, segment: Segment) -> Iterator[memoryview]:
        """The bytes of a segment: as `Store.views`."""
        for view in super().views(segment):
            yield view
            self.read_bytes += view.nbytes  # threads may lose a count: it is for a bar


def _opened(folder: Path, card: Description | None) -> Counted:
    try:
        return Counted.open(folder, card.manifest if card else None)
    except (WeightsError, OSError) as error:
        raise CommandError(Code.FAILED, str(error)) from error


def _options(
    access: Access, max_clients: int, card: Description | None, form: Form
) -> ServerOptions:
    try:
        return ServerOptions(
            layouts=card.status.layouts[:1] if card and card.status else ("raw",),
            max_clients=max_clients,
            facts=dict(card.facts) if card else {},
            token=access.token,
            tls=access.tls,
            on_session=lambda record: form.tell(_session(record)),
        )
    except (TypeError, ValueError) as error:
        raise CommandError(Code.USAGE, str(error)) from error


def _begun(wanted: Wanted, identity: Identity, store: Counted, options: ServerOptions) -> Server:
    try:
        return serve(store, identity, wanted.host, wanted.port, options)
    except (TypeError, ValueError) as error:
        raise CommandError(Code.USAGE, str(error)) from error
    except (WeightsError, OSError) as error:
        raise CommandError(Code.FAILED, str(error)) from error


def _identity(told: Identity | None, wanted: Wanted) -> Identity:
    """What the folder says, or its name, with the fields of the command line in their places."""
    known = told or Identity({"model": wanted.folder.resolve().name})
    given: dict[str, str] = {}
    for pair in wanted.identity:
        name, found, value = pair.partition("=")
        if not found or not name:
            raise CommandError(Code.USAGE, f"--identity {pair!r}: write name=value")
        given[name] = value
    soft: Mapping[str, str] = {n: given.get(n, v) for n, v in known.soft.items()}
    return Identity({**known.hard, **{n: v for n, v in given.items() if n not in soft}}, soft)


def _folder_offered(
    server: Server, folder: Path, identity: Identity, options: ServerOptions
) -> FolderFiles | None:
    """The other files of the folder, which are offered as well; None where it has none."""
    name = identity.hard.get("model") or folder.resolve().name
    try:
        files = FolderFiles.read(folder, name, "", DATA)
    except (FilesError, OSError):
        return None
    server.offer(files.publish(options))
    return files


def _ready(server: Server, folder: Path, nbytes: int, files: FolderFiles | None) -> Answer:
    count = len(files.store.manifest.tensors) if files else 0
    left_out = [*files.left_out] if files else []
    data = {"event": "ready", "endpoint": str(server.endpoint), "bytes": nbytes}
    data |= {"files": count, "files_left_out": left_out}
    beside = f" and {count} files beside" if count else ""
    line = f"Serving {size(nbytes)}{beside} of {folder} at {server.endpoint}; stop with Ctrl-C"
    return Answer(data, (Text(line),))


def _session(record: SessionRecord) -> Answer:
    data = {
        "event": "session",
        "peer": str(record.peer),
        "state": record.state.value,
        "reason": record.reason.value,
        "detail": record.detail,
        "sent_bytes": record.sent_bytes,
    }
    detail = f" ({record.detail})" if record.detail else ""
    line = f"{record.peer}: {record.reason.value}{detail}, {size(record.sent_bytes)} sent"
    return Answer(data, (plain(line),))
