"""`netloader standby -- vllm serve ...`: start an instance that waits for its weights."""

import json
import shlex
from collections.abc import Sequence

from rich.text import Text

from netloader.cli.answers import Answer, CommandError
from netloader.cli.codes import Code
from netloader.cli.configuration import object_of
from netloader.cli.words import EXTRA, FORMAT, become, taken


def run(words: Sequence[str], dry: bool) -> Answer:  # noqa: FBT001 - an option
    """Run vLLM's command in the place of this process, with what makes it wait.

    Raises:
        CommandError: it cannot be run.
    """
    command = on_standby(words)
    if not dry:
        become(command)
    return Answer({"command": command}, (Text(shlex.join(command)),))


def on_standby(words: Sequence[str]) -> list[str]:
    """A command of vLLM with netloader's load format and `STANDBY`, whatever else it has.

    Raises:
        CommandError: it names another load format, or what is no JSON object.
    """
    rest, formats = taken(words, FORMAT)
    rest, extras = taken(rest, EXTRA)
    if formats and formats[-1] != "netloader":
        problem = f"{FORMAT} {formats[-1]}: an instance on standby needs {FORMAT} netloader"
        raise CommandError(Code.USAGE, problem)
    extra = {**object_of(extras[-1] if extras else "{}"), "STANDBY": True}
    return [*rest, FORMAT, "netloader", EXTRA, json.dumps(extra)]
