"""`netloader serve`: a folder of safetensors files as a source, without an engine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from rich.text import Text

from netloader.cli.answers import Answer, CommandError, Form, plain
from netloader.cli.codes import Code
from netloader.cli.interrupts import interrupted
from netloader.cli.options import Access
from netloader.cli.proving import compare, computed
from netloader.discovery.announce import Announcement
from netloader.discovery.base import Candidate, Registry
from netloader.discovery.keys import key_of
from netloader.discovery.urls import registry_of
from netloader.errors import WeightsError, cause
from netloader.files.folder import FolderFiles
from netloader.files.rules import DATA, WITH_CODE, FilesError
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import suitable_segment_bytes
from netloader.io.host import boot_id
from netloader.io.listener import ANYWHERE
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions, publish_verified
from netloader.io.server import Server, listen
from netloader.io.snapshot import SessionRecord
from netloader.io.store.composed import ComposedStore
from netloader.io.store.parts import Part, open_part, parts_in
from netloader.log import get_logger
from netloader.units import size

POLL_S = 0.1
"""How often it is looked whether weights are still offered."""


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
    verify: bool
    """Whether all is read and compared with its digests before it is offered."""
    checkpoint: Path | None
    """Where the checkpoint is that maps in the folder name, if it was moved."""
    access: Access


def run(wanted: Wanted, form: Form) -> Answer:
    """Serve until the process is interrupted; says when it is ready, and of each session.

    Raises:
        CommandError: it cannot be served.
    """
    parts = _opened(wanted)
    options = _options(wanted, form)
    registry = _registry(wanted)
    with ExitStack() as stack:
        stop = stack.enter_context(interrupted())
        server = stack.enter_context(_begun(wanted, options))
        served = [_published(part, wanted, options, stop) for part in parts]
        for published in served:
            server.offer(published)
        files = _folder_offered(server, wanted.folder, parts[0], options)
        form.tell(_ready(server, wanted.folder, served, files))
        for published in served:
            stack.enter_context(_announced(registry, published, server))
        _watch(served, stop, form)
        told = [published.snapshot() for published in served]
    sessions, sent_bytes = sum(m.sessions for m in told), sum(m.sent_bytes for m in told)
    data = {"event": "ended", "sessions": sessions, "sent_bytes": sent_bytes}
    return Answer(data, (Text(f"Ended: {sessions} sessions, {size(sent_bytes)} sent"),))


def _watch(served: Sequence[PublishedModel], stop: Event, form: Form) -> None:
    """Wait for the end, and tell of each model that is offered no more."""
    gone: dict[int, str] = {}
    while not stop.wait(POLL_S):
        for number, published in enumerate(served):
            if number not in gone and (why := published.withdrawn):
                gone[number] = why
                data = {"event": "withdrawn", "model": _name(published), "why": why}
                form.tell(
                    Answer(data, (plain(f"Not offered any more: {_name(published)}: {why}"),))
                )


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
def _announced(
    registry: Registry | None, published: PublishedModel, server: Server
) -> Iterator[None]:
    """Have the registry name the server for one model inside the block, as long as it offers."""
    if registry is None:
        yield
        return

    def offered() -> Candidate | None:
        model = published.snapshot()
        load = model.clients / published.max_clients
        return Candidate(server.endpoint, boot_id(), load) if not model.withdrawn else None

    key = key_of(published.entry.identity)
    announcement = Announcement(registry, key, offered, get_logger("server"))
    try:
        yield
    finally:
        announcement.end()


def _opened(wanted: Wanted) -> list[Part]:
    """The parts of the folder, each with the identity that it is offered with."""
    given = _given(wanted.identity)
    try:
        parts = [open_part(folder, wanted.checkpoint) for folder in parts_in(wanted.folder)]
    except (WeightsError, OSError) as error:
        raise CommandError(Code.FAILED, str(error)) from error
    mapped = any(isinstance(part.store, ComposedStore) for part in parts)
    if wanted.checkpoint is not None and not mapped:
        problem = f"--checkpoint: {wanted.folder} has all its bytes itself; leave the option out"
        raise CommandError(Code.USAGE, problem)
    named = [replace(part, identity=_identity(part.identity, given)) for part in parts]
    _check_distinct(named)
    return named


def _check_distinct(parts: Sequence[Part]) -> None:
    """Refuse two parts of which a server can offer one only: it tells them apart by their kinds."""
    known: dict[tuple[tuple[str, str], ...], Path] = {}
    for part in parts:
        other = known.setdefault(tuple(part.identity.kind.items()), part.folder)
        if other is not part.folder:
            what = f"{other} and {part.folder} hold the same part of a model"
            raise CommandError(Code.FAILED, f"{what}; serve each from a folder of its own")


def _given(pairs: Sequence[str]) -> Mapping[str, str]:
    """The fields that the command line names."""
    given: dict[str, str] = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not name:
            raise CommandError(Code.USAGE, f"--identity {pair!r}: write name=value")
        given[name] = value
    return given


def _identity(known: Identity, given: Mapping[str, str]) -> Identity:
    """What the folder says, with the fields of the command line in their places."""
    soft = {name: given.get(name, value) for name, value in known.soft.items()}
    hard = {name: value for name, value in given.items() if name not in soft}
    return Identity({**known.hard, **hard}, soft)


def _options(wanted: Wanted, form: Form) -> ServerOptions:
    try:
        return ServerOptions(
            max_clients=wanted.max_clients,
            token=wanted.access.token,
            tls=wanted.access.tls,
            on_session=lambda record: form.tell(_session(record)),
        )
    except (TypeError, ValueError) as error:
        raise CommandError(Code.USAGE, str(error)) from error


def _published(part: Part, wanted: Wanted, options: ServerOptions, stop: Event) -> PublishedModel:
    """Describe a part for clients, with the digests of its card, or those that it has now."""
    proof = part.proof
    chosen = replace(
        options,
        layouts=(part.card.layout if part.card else "raw",),
        facts=dict(part.card.facts) if part.card else {},
    )
    if proof is not None and wanted.verify:
        compare(part, proof, stop)
    if proof is None:
        cut = suitable_segment_bytes(part.store.manifest.nbytes)
        proof = computed(part, options.digest_algorithms[0], cut, stop)
    try:
        return publish_verified(part.store, part.identity, chosen, proof)
    except (WeightsError, ValueError) as error:
        raise CommandError(Code.FAILED, f"{part.folder}: {error}") from error


def _begun(wanted: Wanted, options: ServerOptions) -> Server:
    """A server that tells clients to come again, until something is offered."""
    try:
        return listen(wanted.host, wanted.port, options)
    except (TypeError, ValueError) as error:
        raise CommandError(Code.USAGE, str(error)) from error
    except OSError as error:
        what = f"{wanted.host or '*'}:{wanted.port} cannot be opened: {cause(error)}"
        raise CommandError(Code.FAILED, f"{what}; give another --port or --host") from error


def _folder_offered(
    server: Server, folder: Path, part: Part, options: ServerOptions
) -> FolderFiles | None:
    """The other files of the folder, which are offered as well; None where it has none."""
    name = part.identity.hard.get("model") or folder.resolve().name
    served_name = part.card.served_name if part.card else ""
    rules = WITH_CODE if any(folder.glob("*.py")) else DATA
    try:
        files = FolderFiles.read(folder, name, served_name, rules)
    except (FilesError, OSError):
        return None
    server.offer(files.publish(options))
    return files


def _name(published: PublishedModel) -> str:
    """The role and the part of a model."""
    return ", ".join(filter(None, (published.entry.role, *published.entry.identity.part)))


def _ready(
    server: Server, folder: Path, served: Sequence[PublishedModel], files: FolderFiles | None
) -> Answer:
    nbytes = sum(published.entry.manifest.nbytes for published in served)
    count = len(files.store.manifest.tensors) if files else 0
    left_out = [*files.left_out] if files else []
    data = {"event": "ready", "endpoint": str(server.endpoint), "bytes": nbytes}
    data |= {"models": [_name(published) for published in served]}
    data |= {"files": count, "files_left_out": left_out}
    several = f" of {len(served)} models" if len(served) > 1 else ""
    beside = f" and {count} files beside" if count else ""
    what = f"{size(nbytes)}{several}{beside} in {folder}"
    return Answer(data, (Text(f"Serving {what} at {server.endpoint}; stop with Ctrl-C"),))


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
