"""`netloader snapshot`: all of an instance in a folder: every rank and role, and its files."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

from rich.text import Text

from netloader.cli.answers import Answer, CommandError, plain
from netloader.cli.codes import Code
from netloader.cli.copying import LAYOUTS, Checkpoint, Copied, Copy, MappedCopy, Wanted, appearing
from netloader.cli.interrupts import interrupted
from netloader.cli.places import places_of
from netloader.cli.sources import Told, ask_instance
from netloader.config import Endpoint
from netloader.discovery.keys import PARTITIONED
from netloader.files.fetching import names_of, receive
from netloader.files.rules import DATA, WITH_CODE, FilesError
from netloader.fsm.identity import Role
from netloader.fsm.manifest import root_digest
from netloader.io.clock import monotonic
from netloader.io.options import ClientOptions
from netloader.units import duration, rate, size

OF: Final = " of "
"""Between the number of a part and how many there are."""
NAME: Final = re.compile(r"[a-z0-9_-]{1,32}")
"""Roles that name a folder as they are: a source may call a role anything."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    sources: Sequence[str]
    out: Path
    layout: str | None
    trust: bool
    """Whether code of the model is taken, too."""
    checkpoint: Path | None
    """A folder whose bytes are not written again, but named by a map."""


def run(asked: Asked, options: ClientOptions) -> Answer:
    """Copy all that the instance has, verified, into a folder that appears when it is complete.

    Raises:
        CommandError: nothing was written.
    """
    if asked.layout not in (None, *LAYOUTS):
        raise CommandError(Code.USAGE, f"--layout {asked.layout}: give one of {', '.join(LAYOUTS)}")
    models = _models(places_of(asked.sources, options), options)
    layouts = LAYOUTS if asked.layout is None else (asked.layout,)
    for told in (each[0] for each in models.values()):
        _check_layouts(told, layouts)
    begun = monotonic()
    with interrupted() as cancel, appearing(asked.out) as hidden, ExitStack() as stack:
        chosen = replace(options, layouts=layouts, cancel=cancel)
        wanted = _wanted(models, hidden)
        copies = _copies(wanted, asked.checkpoint)
        for copy in copies:
            stack.enter_context(closing(copy))
        files, served_name = _files(models, hidden, chosen, trust=asked.trust)
        copied = [
            copy.run(chosen, served_name, f"{number}{OF}{len(copies)} {copy.wanted.told.name}")
            for number, copy in enumerate(copies, 1)
        ]
    return _done(asked.out, files, copied, monotonic() - begun)


def _copies(wanted: Sequence[Wanted], checkpoint: Path | None) -> Sequence[Copy | MappedCopy]:
    """A copy of each part, begun."""
    if checkpoint is None:
        return [Copy(each) for each in wanted]
    known = Checkpoint.open(checkpoint)
    return [MappedCopy(each, known) for each in wanted]


Models = Mapping[tuple[str, ...], Sequence[Told]]
"""By role and part, what each server says that has it."""


def _models(places: Sequence[Endpoint], options: ClientOptions) -> Models:
    """The models of the first instance that answers, with all servers that have the same.

    Raises:
        CommandError: none answers, or a rank is missing.
    """
    found: dict[tuple[str, ...], list[Told]] = {}
    problems: list[CommandError] = []
    seen = set[Endpoint]()
    first: Told | None = None
    for place in (place for place in places if place not in seen):
        try:
            instance = ask_instance(place, options)
        except CommandError as error:
            problems.append(error)
            continue
        seen |= {told.source for told in instance}
        first = first or instance[0]
        if not _alike(first, instance[0]):
            continue
        for told in instance:
            known = found.setdefault(tuple(told.identity.kind.values()), [])
            if not known or not known[0].identity.differences(told.identity):
                known.append(told)
    if first is None:
        raise problems[0] if problems else CommandError(Code.UNREACHABLE, "no server was found")
    if missing := _missing(first, [known[0] for known in found.values()]):
        said = "; ".join((*map(str, problems), "name a server on its host, too"))
        raise CommandError(Code.REFUSED, f"no source has {missing}; {said}")
    return found


def _counts(told: Told) -> dict[str, int]:
    """Into how many parts a model is cut, by field."""
    texts = {name: told.identity.hard.get(name, "").partition(OF)[2] for name in PARTITIONED}
    return {name: int(text) for name, text in texts.items() if text.isdecimal()}


def _alike(first: Told, other: Told) -> bool:
    """Whether two servers are of instances that can fill each other's clients."""
    names = (told.identity.hard.get("model") for told in (first, other))
    return len({*names}) == 1 and _counts(first) == _counts(other)


def _missing(first: Told, models: Sequence[Told]) -> str:
    """A rank of the first model that is not among these; empty if all are there."""
    counts = _counts(first)
    there = {
        tuple(told.identity.hard[name] for name in counts)
        for told in models
        if told.role == first.role and _counts(told) == counts
    }
    ranks = product(*([f"{n}{OF}{count}" for n in range(count)] for count in counts.values()))
    for rank in ranks:
        if rank not in there:
            return ", ".join(f"{name} {text}" for name, text in zip(counts, rank, strict=True))
    return ""


def _check_layouts(told: Told, layouts: Sequence[str]) -> None:
    offered = told.status.layouts
    if not any(name in offered for name in layouts):
        what = f"{told.source} has the layout {', '.join(offered)}, and not {layouts[0]}"
        raise CommandError(Code.REFUSED, f"{what}; leave --layout out, or set LAYOUT there")


def _wanted(models: Models, folder: Path) -> list[Wanted]:
    """The folder of each part; in their order the first model comes first when it is served."""
    return [
        Wanted(known[0], [told.source for told in known], folder / _name(number, known[0]))
        for number, known in enumerate(models.values())
    ]


def _name(number: int, told: Told) -> str:
    return f"{number:02}-{told.role if NAME.fullmatch(told.role) else 'model'}"


def _files(
    models: Models, folder: Path, options: ClientOptions, *, trust: bool
) -> tuple[list[str], str]:
    """Write the other files of the model's folder; their names, and what requests call it."""
    offering = [told.source for known in models.values() for told in known if _has_files(told)]
    if not offering:
        return [], ""
    try:
        rules = WITH_CODE if trust else DATA
        got = receive([*dict.fromkeys(offering)], Role.FILES, options, rules, names_of)
        _, served_name = names_of(got.told)
    except FilesError as error:
        cancel = options.cancel
        stopped = cancel is not None and cancel.is_set()
        raise CommandError(Code.INTERRUPTED if stopped else Code.FAILED, str(error)) from error
    for name, content in got.contents.items():  # paths that the rules have accepted
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [*got.contents], served_name


def _has_files(told: Told) -> bool:
    return Role.FILES in told.status.roles


def _done(out: Path, files: Sequence[str], copied: Sequence[Copied], seconds: float) -> Answer:
    nbytes = sum(each.outcome.nbytes for each in copied)
    kept = sum(each.kept_bytes for each in copied)
    speed = nbytes / max(seconds, 1e-9)
    data = {
        "folder": str(out),
        "parts": [_part(each) for each in copied],
        "files": [*files],
        "bytes": nbytes,
        "kept_bytes": kept,
        "seconds": round(seconds, 3),
        "bytes_per_s": round(speed),
    }
    rest = "" if kept == nbytes else f", {size(kept)} of them kept, the others in the checkpoint"
    moved = f"{size(nbytes)} in {duration(seconds)} ({rate(speed)}), verified{rest}: {out}"
    beside = f"{len(files)} files beside" if files else "no other files: its source offers none"
    return Answer(data, (Text(moved), *map(_line, copied), Text(beside)))


def _part(copied: Copied) -> dict[str, object]:
    """One part for programs."""
    outcome = copied.outcome
    return {
        "folder": copied.wanted.folder.name,
        "model": copied.wanted.told.name,
        "source": str(outcome.source),
        "bytes": outcome.nbytes,
        "kept_bytes": copied.kept_bytes,
        "digest_algorithm": outcome.digest_algorithm,
        "root": root_digest(outcome.progress.segment_digests),
    }


def _line(copied: Copied) -> Text:
    name = copied.wanted.told.name or "weights"
    return plain(f"{copied.wanted.folder.name}: {name}, from {copied.outcome.source}")
