"""Sources as the commands ask them: who they are, with which token, and what they answer."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netloader.cli.answers import CommandError
from netloader.cli.codes import Code
from netloader.config import Deadlines, Endpoint, Secret
from netloader.errors import cause
from netloader.fsm.identity import BESIDE, ROLE, Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description, Status
from netloader.fsm.reasons import Reason
from netloader.fsm.terms import beside
from netloader.io.describe import ask_status
from netloader.io.options import ClientOptions
from netloader.io.outcome import Attempt
from netloader.log_text import ADVICE
from netloader.secure.tls import Tls
from netloader.secure.tokens import MIN_CHARS, TokenFile

TOKEN_VARIABLE: Final = "NETLOADER_TOKEN"  # noqa: S105 - the name of a variable
NOTHING: Final = Manifest(())
MOST_MODELS: Final = 256
"""Of one server: a folder has one for each rank and role of an instance."""
WHOLE: Final = (" 0 of 1", " decode 1", " off")
"""How the fields of a partition end that is none."""
NO_ANSWER: Final = (Reason.UNREACHABLE, Reason.CONNECTION_LOST, Reason.DEADLINE_PASSED)


@dataclass(frozen=True, slots=True)
class Told:
    """What a source says of one model; `status` and `manifest` are there."""

    source: Endpoint
    identity: Identity
    facts: dict[str, str]
    status: Status
    manifest: Manifest

    @property
    def role(self) -> str:
        """What the model is for; empty without a role."""
        return self.identity.role or ""

    @property
    def name(self) -> str:
        """The role, and the part of the model where an instance has several."""
        several = (part for part in self.identity.part if not part.endswith(WHOLE))
        return ", ".join(filter(None, (self.role, *several)))


def token_of(file: Path | None) -> Secret | TokenFile | None:
    """The token: in a file, or in the environment; never an argument, which others can see.

    Raises:
        CommandError: the file cannot be read, or has no token that can be used.
    """
    if file is None:
        text = os.environ.get(TOKEN_VARIABLE, "").strip()
        if text and len(text) < MIN_CHARS:
            problem = f"{TOKEN_VARIABLE} is too short; a token has {MIN_CHARS} characters or more"
            raise CommandError(Code.USAGE, problem)
        return Secret(text) if text else None
    try:
        return TokenFile(file)
    except (OSError, ValueError) as error:
        what = f"--token-file {file} cannot be used: {cause(error)}"
        raise CommandError(Code.USAGE, f"{what}; give a file of tokens, one a line") from error


def asking(timeout_s: float, token: Secret | TokenFile | None, tls: Tls | None) -> ClientOptions:
    """How a question is put.

    Raises:
        CommandError: the time cannot be used.
    """
    try:
        deadlines = Deadlines(connect_s=max(timeout_s, 0.001))
        return ClientOptions(token=token, tls=tls, timeout_s=timeout_s, deadlines=deadlines)
    except ValueError as error:
        raise CommandError(Code.USAGE, f"--timeout: {error}") from error


def ask(source: Endpoint, asked: Mapping[str, str], options: ClientOptions) -> Told:
    """What a source says of the model that has these fields, such as a role; else of its first.

    Raises:
        CommandError: it does not answer, or refuses.
    """
    told = _told(source, ask_status(source, asked, NOTHING, options))
    role = asked.get(ROLE)
    if role is not None and told.role != role:
        served = ", ".join(told.status.roles) or "a model without a role"
        raise CommandError(Code.REFUSED, f"{source} has no role {role!r}; it serves {served}")
    return told


def ask_all(source: Endpoint, options: ClientOptions) -> tuple[Told, ...]:
    """What a source says of each of its models; what is none, `ask_beside` asks for.

    Raises:
        CommandError: it does not answer, or refuses.
    """
    first = ask(source, {}, options)
    kinds = first.status.kinds or tuple({ROLE: role} for role in first.status.roles if role)
    known = (first.identity.kind, {ROLE: first.role})
    others = [kind for kind in kinds if kind not in known and kind.get(ROLE) not in BESIDE]
    return first, *(ask(source, kind, options) for kind in others[:MOST_MODELS])


def ask_instance(place: Endpoint, options: ClientOptions) -> list[Told]:
    """What all ranks of an instance on one host say of their models, by the port of one of them.

    Raises:
        CommandError: one of them does not answer, or refuses.
    """
    places, told = [place], list[Told]()
    for each in places:  # which grows
        models = ask_all(each, options)
        places += ranks_beside(models[0], places)
        told += models
    return told


def ask_beside(told: Told, options: ClientOptions) -> tuple[Told, ...]:
    """What a source says of files, hints and caches that it offers beside its models, if it does.

    Raises:
        CommandError: it does not answer, or refuses.
    """
    offered = [role for role in BESIDE if role in told.status.roles and role != told.role]
    return tuple(ask(told.source, {ROLE: role}, options) for role in offered)


def ranks_beside(told: Told, known: Collection[Endpoint]) -> tuple[Endpoint, ...]:
    """The other ranks of a server's instance on its host, as far as they are not known."""
    return tuple(e for e in beside(told.source, told.status.ports) if e not in known)


def ask_first(
    sources: Sequence[Endpoint], asked: Mapping[str, str], options: ClientOptions
) -> Told:
    """What the first source says that answers.

    Raises:
        CommandError: none does; why the last one does not.
    """
    problem = CommandError(Code.UNREACHABLE, "no server was found")
    for source in sources:
        try:
            return ask(source, asked, options)
        except CommandError as error:
            problem = error
    raise problem


def _told(source: Endpoint, said: Description | Attempt) -> Told:
    if isinstance(said, Attempt):
        raise failure(said)
    if said.status is None or said.manifest is None:
        raise CommandError(Code.REFUSED, f"{source} says no status; its netloader is older")
    return Told(source, said.identity, dict(said.facts), said.status, said.manifest)


def failure(attempt: Attempt) -> CommandError:
    """Why a source has not done what was asked, and what would help."""
    reason = attempt.reason
    code = Code.UNREACHABLE if reason in NO_ANSWER else Code.REFUSED
    why = f"{attempt.source}: {reason.value}{f' ({attempt.detail})' if attempt.detail else ''}"
    advice = ADVICE.get(reason.value, "")
    if reason in (Reason.AUTH_REQUIRED, Reason.AUTH_FAILED):
        advice = f"give the server's token in --token-file, or in {TOKEN_VARIABLE}"
    if reason is Reason.TLS_REQUIRED:
        advice = "give --tls-ca, and --tls-cert and --tls-key where the server asks for them"
    return CommandError(code, f"{why}{f'; {advice}' if advice else ''}")
