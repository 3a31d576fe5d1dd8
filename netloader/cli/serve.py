"""`netloader serve`: a folder of safetensors files as a source, without an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from netloader.cli.answers import Answer, CommandError, Form, plain
from netloader.cli.codes import Code
from netloader.cli.folders import card_in
from netloader.cli.interrupts import interrupted
from netloader.config import Secret
from netloader.errors import WeightsError
from netloader.fsm.identity import Identity
from netloader.io.publishing import ServerOptions
from netloader.io.server import Server, serve
from netloader.io.snapshot import SessionRecord
from netloader.io.store.files import FileStore
from netloader.log_text import size
from netloader.secure.tokens import MIN_CHARS, TokenFile

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says; `identity` replaces fields of what the folder says."""

    folder: Path
    host: str
    port: int
    identity: Sequence[str]
    max_clients: int
    token: Secret | TokenFile | None


def run(wanted: Wanted, form: Form) -> Answer:
    """Serve until the process is interrupted; says when it is ready, and of each session.

    Raises:
        CommandError: it cannot be served.
    """
    if isinstance(wanted.token, Secret) and len(wanted.token.reveal()) < MIN_CHARS:
        raise CommandError(Code.USAGE, f"the token has less than {MIN_CHARS} characters")
    with interrupted() as stop, _begun(wanted, form) as server:
        while not server.wait_ready(POLL_S) and not stop.is_set():
            pass
        (model,) = server.snapshot().models
        if model.withdrawn:
            raise CommandError(Code.FAILED, f"{wanted.folder} is not served: {model.withdrawn}")
        if not stop.is_set():
            form.tell(_ready(server, wanted.folder, model.nbytes))
        while not stop.wait(POLL_S):
            pass
        (model,) = server.snapshot().models
    data = {"event": "ended", "sessions": model.sessions, "sent_bytes": model.sent_bytes}
    sent = f"{model.sessions} sessions, {size(model.sent_bytes)} sent"
    return Answer(data, (Text(f"Ended: {sent}"),))


def _begun(wanted: Wanted, form: Form) -> Server:
    card = card_in(wanted.folder)
    identity = _identity(card.identity if card else None, wanted)
    try:
        store = FileStore.open(wanted.folder, card.manifest if card else None)
        options = ServerOptions(
            layouts=card.status.layouts[:1] if card and card.status else ("raw",),
            max_clients=wanted.max_clients,
            facts=dict(card.facts) if card else {},
            token=wanted.token,
            on_session=lambda record: form.tell(_session(record)),
        )
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


def _ready(server: Server, folder: Path, nbytes: int) -> Answer:
    data = {"event": "ready", "endpoint": str(server.endpoint), "bytes": nbytes}
    line = f"Serving {size(nbytes)} of {folder} at {server.endpoint}; stop with Ctrl-C"
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
