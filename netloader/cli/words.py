"""Commands of vLLM that netloader completes and runs in its own place."""

import os
import shutil
from collections.abc import Sequence
from typing import Final, NoReturn

from netloader.cli.answers import CommandError
from netloader.cli.codes import Code

FORMAT: Final = "--load-format"
EXTRA: Final = "--model-loader-extra-config"


def taken(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The words without an option, and the values that it had.

    vLLM takes `--load_format` for `--load-format`.
    """
    rest: list[str] = []
    values: list[str] = []
    left = iter(words)
    for word in left:
        name, given, value = word.partition("=")
        if name.replace("_", "-") != option:
            rest.append(word)
        else:
            values.append(value if given else next(left, ""))
    return rest, values


def check_runs(program: str) -> None:
    """Refuse a program that `become` would not find.

    Raises:
        CommandError: it cannot be run.
    """
    if shutil.which(program) is None:
        what = f"{program} cannot be run: there is no such program, or it is not executable"
        raise CommandError(Code.USAGE, f"{what}; write its path, or activate its environment")


def become(command: Sequence[str]) -> NoReturn:
    """Run a command in the place of this process.

    Raises:
        CommandError: it cannot be run.
    """
    try:
        os.execvp(command[0], [*command])  # noqa: S606 - the user's own command
    except OSError as error:
        problem = f"{command[0]} cannot be run: {error.strerror}"
        raise CommandError(Code.USAGE, problem) from error
