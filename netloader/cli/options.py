"""Options that several commands have, declared once, and what makes a command of a function.

A command is a function that gives an `Answer`. A parameter that is an `Access` or a `Link` stands
for the options that are its fields; one that is a `Form` is how the answer is written, for a
command that says more than one thing. Every command has --json.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from netloader.cli.answers import Answer, CommandError, Form, People, Programs, carry_out
from netloader.cli.codes import Code
from netloader.errors import cause

if TYPE_CHECKING:
    from netloader.config import Secret
    from netloader.io.options import ClientOptions
    from netloader.secure.tls import Tls
    from netloader.secure.tokens import TokenFile

SECRETS: Final = "Tokens and TLS"
"""The heading of these options in the help."""
KINDS: Final = (
    "*host:port*, or where servers are looked up: *redis://host/prefix*, *etcd://host/prefix*, "
    "*k8s://namespace/service*, *srv+NAME*, *file:PATTERN*, or a DNS name with a port."
)
BEGINNINGS: Final = (
    *("redis://", "rediss://", "etcd://", "etcds://", "k8s://", "srv+", "file:"),
    "127.0.0.1:",
)
"""What the completion of a source offers."""


def completed(incomplete: str) -> list[str]:
    """The kinds of sources that begin like this, for a shell."""
    return [beginning for beginning in BEGINNINGS if beginning.startswith(incomplete)]


def source(metavar: str, help_: str) -> Any:
    """An argument that names servers."""
    return typer.Argument(metavar=metavar, help=f"{help_} {KINDS}", autocompletion=completed)


def _file(name: str, help_: str) -> Any:
    variable = f"NETLOADER_{name.upper().replace('-', '_')}"
    return typer.Option(
        f"--{name}", metavar="FILE", envvar=variable, help=help_, rich_help_panel=SECRETS
    )


@dataclass(frozen=True, slots=True)
class Access:
    """What both sides show each other. The annotations are the options."""

    token_file: Annotated[
        Path | None,
        _file(
            "token-file",
            "Tokens, one a line; the first is shown. Or one in NETLOADER_TOKEN.",
        ),
    ] = None
    tls_cert: Annotated[
        Path | None, _file("tls-cert", "PEM certificate of this side, with its chain.")
    ] = None
    tls_key: Annotated[
        Path | None, _file("tls-key", "PEM key of the certificate, if it is another file.")
    ] = None
    tls_ca: Annotated[
        Path | None, _file("tls-ca", "PEM authorities that the other side is verified with.")
    ] = None

    @property
    def token(self) -> "Secret | TokenFile | None":
        """The token: in a file, or in the environment; never an argument, which others can see.

        Raises:
            CommandError: the file cannot be read, or has no token that can be used.
        """
        from netloader.cli.sources import token_of

        return token_of(self.token_file)

    @property
    def tls(self) -> "Tls | None":
        """TLS, if one of its files is given.

        Raises:
            CommandError: a file cannot be used.
        """
        files = (self.tls_cert, self.tls_key, self.tls_ca)
        if files == (None, None, None):
            return None
        from netloader.secure.tls import Tls

        try:
            return Tls(*files)
        except (OSError, ValueError) as error:
            problem = f"--tls-cert, --tls-key, --tls-ca: {cause(error)}"
            raise CommandError(Code.USAGE, problem) from error


@dataclass(frozen=True, slots=True)
class Link(Access):
    """How servers are asked."""

    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long a server may take to answer.")
    ] = 10.0

    @property
    def client(self) -> "ClientOptions":
        """How a server is asked.

        Raises:
            CommandError: an option cannot be used.
        """
        from netloader.cli.sources import asking

        return asking(self.timeout, self.token, self.tls)


JSON: Final = inspect.Parameter(
    "json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--json", help="Write one JSON object a line, problems included.")
    ],
)


def _options(group: type[Access]) -> list[inspect.Parameter]:
    """The fields of a group of options, as parameters."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=field.type)
        for field in fields(group)
    ]


def command(answer: Callable[..., Answer]) -> Callable[..., None]:
    """Make a command of a function that gives an answer. Its docstring is the help."""
    parameters = inspect.signature(answer).parameters
    kinds = {name: each.annotation for name, each in parameters.items()}
    groups = {name: kind for name, kind in kinds.items() if kind in (Access, Link)}
    forms = [name for name, kind in kinds.items() if kind is Form]
    own = [each for name, each in parameters.items() if name not in (*groups, *forms)]
    shared = {name: _options(group) for name, group in groups.items()}

    def run(**given: Any) -> None:
        form: Form = Programs() if given.pop("json") else People()
        for name, options in shared.items():
            given[name] = groups[name](**{each.name: given.pop(each.name) for each in options})
        given |= dict.fromkeys(forms, form)
        raise typer.Exit(carry_out(lambda: answer(**given), form))

    added = [each for options in shared.values() for each in options]
    signature = inspect.Signature([*own, *added, JSON])
    annotations = {each.name: each.annotation for each in signature.parameters.values()}
    update_wrapper(run, answer)
    vars(run)["__signature__"] = signature  # what typer reads
    run.__annotations__ = annotations
    return run
