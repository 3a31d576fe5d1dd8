"""`netloader standby -- vllm serve ...`: start an instance that waits for its weights."""

import json
import os
import shlex
from collections.abc import Sequence
from typing import Final

from rich.text import Text

from netloader.cli.answers import Answer, CommandError
from netloader.cli.codes import Code
from netloader.cli.configuration import object_of

FORMAT: Final = "--load-format"
EXTRA: Final = "--model-loader-extra-config"


def run(words: Sequence[str], dry: bool) -> Answer:  # noqa: FBT001 - an option
    """Run vLLM's command in the place of this process, with what makes it wait.

    Raises:
        CommandError: it cannot be run.
    """
    command = on_standby(words)
    if dry:
        return Answer({"command": command}, (Text(shlex.join(command)),))
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's own command
    except OSError as error:
        problem = f"{command[0]} cannot be run: {error.strerror}"
        raise CommandError(Code.USAGE, problem) from error


def on_standby(words: Sequence[str]) -> list[str]:
    """A command of vLLM with netloader's load format and `STANDBY`, whatever else it has.

    Raises:
        CommandError: it names another load format, or what is no JSON object.
    """
    rest, formats = _taken(words, FORMAT)
    rest, extras = _taken(rest, EXTRA)
    if formats and formats[-1] != "netloader":
        problem = f"{FORMAT} {formats[-1]}: an instance on standby needs {FORMAT} netloader"
        raise CommandError(Code.USAGE, problem)
    extra = {**object_of(extras[-1] if extras else "{}"), "STANDBY": True}
    return [*rest, FORMAT, "netloader", EXTRA, json.dumps(extra)]


def _taken(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The words without an option, and the values that it had."""
    rest: list[str] = []
    values: list[str] = []
    left = iter(words)
    for word in left:
        if word == option:
            values.append(next(left, ""))
        elif word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
        else:
            rest.append(word)
    return rest, values
