"""Fetch the files of a model's folder from running servers into the cache."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from netloader.config import Endpoint, shown
from netloader.files.cache import cache_root, keep
from netloader.files.folder import OVER, SERVED_NAME
from netloader.files.rules import DATA, FilesError, Rules
from netloader.fsm.identity import ROLE, Role
from netloader.fsm.manifest import Extent, Manifest
from netloader.fsm.messages import Description
from netloader.fsm.reasons import Reason
from netloader.io.client import fill
from netloader.io.describe import ask_status
from netloader.io.options import ClientOptions
from netloader.io.outcome import Attempt, Outcome
from netloader.io.store.memory import HostStore

NOTHING: Final = Manifest(())
MOST_CHARS: Final = 512
"""Of the name of a model."""
NONE_OF: Final = {
    Role.FILES: "files of its model's folder; start it with this version of netloader, from a "
    "folder that has them",
    Role.HINTS: "hints; set CACHES there, and ask when it has warmed up",
    Role.CACHES: "compiled code; set CACHES there, and ask when it has warmed up. An engine that "
    "compiles nothing (--enforce-eager) has none",
}
"""What a source lacks, and what to do about it."""


class NoFilesError(FilesError):
    """A source answers, and offers no files of a role."""

    def __init__(self, source: Endpoint, role: Role) -> None:
        super().__init__(f"{source} offers no {NONE_OF[role]}")


class UnansweredError(FilesError):
    """No source delivers; `attempt` says why the last one does not."""

    def __init__(self, attempt: Attempt) -> None:
        detail = f" ({attempt.detail})" if attempt.detail else ""
        super().__init__(f"{attempt.source}: {attempt.reason.value}{detail}")
        self.attempt = attempt


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder with a model's files, and what its source says of the model."""

    folder: Path
    source: Endpoint
    model: str
    """What instances call the model: the `MODEL` of one that is to be filled by the source."""
    served_name: str
    """What requests call it."""
    names: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Received:
    """Verified files of a role, and what their source says of them."""

    source: Endpoint
    told: Description
    contents: Mapping[str, bytes]
    nbytes: int


def fetch(
    sources: Sequence[Endpoint],
    options: ClientOptions,
    rules: Rules = DATA,
    root: Path | None = None,
) -> Fetched:
    """Receive the files that the first source offers, verify them, and keep them in a folder.

    Sources are tried in order; those after the first are asked for what it offers. `root` is the
    cache, by default `cache_root(os.environ)`. Blocks no longer than `fill`, and holds all files in
    memory until they are written.

    Raises:
        FilesError: no source answers (UnansweredError) or has files (NoFilesError), what one offers
            is not taken, or the cache cannot be used. The cache has nothing new then.
    """
    got = receive(sources, Role.FILES, options, rules, names_of)
    model, served_name = names_of(got.told)
    folder = keep(got.contents, cache_root(os.environ) if root is None else root)
    return Fetched(folder, got.source, model, served_name, tuple(got.contents), got.nbytes)


def receive(
    sources: Sequence[Endpoint],
    role: Role,
    options: ClientOptions,
    rules: Rules,
    check: Callable[[Description], object] = lambda told: None,  # noqa: ARG005
) -> Received:
    """Receive the files of a role into memory, as `fetch` does, and write nothing.

    `check` raises FilesError if they are not wanted, before a byte of them is received.

    Raises:
        FilesError: as `fetch`.
    """
    first, told, manifest = _description(sources, role, options)
    rules.check(manifest)
    check(told)
    store = HostStore(manifest)
    others = (source for source in sources if source != first)
    logger = options.logger.bind(**{"netloader.contents": role.value})
    chosen = replace(options, layouts=("raw",), transports=OVER, timeout_s=None, logger=logger)
    outcome = fill(store, [first, *others], told.identity, chosen)
    if not outcome.ok:
        raise _failed(outcome)
    return Received(outcome.source or first, told, _contents(store), manifest.nbytes)


def _description(
    sources: Sequence[Endpoint], role: Role, options: ClientOptions
) -> tuple[Endpoint, Description, Manifest]:
    """What the first source says that offers files of a role."""
    problem = FilesError("no source is named")
    for source in sources:
        said = ask_status(source, {ROLE: role}, NOTHING, options)
        if isinstance(said, Attempt):
            other = said.reason is Reason.IDENTITY_MISMATCH  # only the role was asked for
            problem = NoFilesError(source, role) if other else UnansweredError(said)
        elif said.identity.role != role or said.manifest is None:
            problem = NoFilesError(source, role)
        else:
            return source, said, said.manifest
    raise problem


def names_of(told: Description) -> tuple[str, str]:
    """The names of the model, which become arguments of a command.

    Raises:
        FilesError: one of them is none.
    """
    model = told.identity.hard.get("model", "")
    served_name = told.facts.get(SERVED_NAME, "") or model
    for name in (model, served_name):
        if not name.strip() or not name.isprintable() or len(name) > MOST_CHARS:
            what = f"text of 1 to {MOST_CHARS} characters that can be shown"
            raise FilesError(f"the source calls its model {shown(name)}; a name is {what}")
    return model, served_name


def _failed(outcome: Outcome) -> FilesError:
    if outcome.attempts:
        return UnansweredError(outcome.attempts[-1])
    return FilesError(f"no source was asked: {outcome.reason.value}")


def _contents(store: HostStore) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for index, spec in enumerate(store.manifest.tensors):
        view = store.host_view(Extent(index, 0, spec.nbytes)) if spec.nbytes else b""
        found[spec.name] = bytes(view or b"")
    return found
