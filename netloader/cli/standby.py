"""`netloader standby -- vllm serve ...`: start an instance that waits for its weights."""

import shlex
from collections.abc import Sequence

from rich.text import Text

from netloader.cli.answers import Answer, CommandError
from netloader.cli.codes import Code
from netloader.cli.words import FORMAT, VllmCommand, become, settings_of, shown


def run(words: Sequence[str], dry: bool) -> Answer:  # noqa: FBT001 - an option
    """Run vLLM's command in the place of this process, with what makes it wait.

    Raises:
        CommandError: it cannot be run.
    """
    command = on_standby(words)
    if not dry:
        become(command)
    told = shown(command)
    return Answer({"command": told}, (Text(shlex.join(told)),))


def on_standby(words: Sequence[str]) -> list[str]:
    """A command of vLLM with netloader's load format and `STANDBY`, whatever else it has.

    Raises:
        CommandError: it names another load format, or settings that cannot be used.
    """
    command = VllmCommand.of(words)
    command.check_format(f"an instance on standby needs {FORMAT} netloader")
    extra = {**command.extra(), "STANDBY": True}
    if not settings_of(extra).standby:
        problem = "STANDBY is false in CONFIG_FILE, which wins over this command; remove it there"
        raise CommandError(Code.USAGE, problem)
    return command.completed(extra)
