"""`netloader config check`: all that is wrong with a `--model-loader-extra-config`, at once."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.text import Text

from netloader.cli.answers import Answer, CommandError, plain
from netloader.cli.codes import Code
from netloader.errors import ConfigError
from netloader.units import counted
from netloader.vllm_plugin.config.settings import Settings

MOST_BYTES: Final = 1 << 20
UNCHECKED: Final = (
    "Not checked here: whether TRANSPORT and the load format of FALLBACK exist in the "
    "environment of the engine, and whether SOURCE answers (see `netloader check`)."
)


def run(given: str) -> Answer:
    """Check a configuration: JSON, `@FILE`, or `-` for standard input.

    Raises:
        CommandError: it is no JSON, or the file cannot be read.
    """
    extra = object_of(_text(given))
    problems: tuple[str, ...] = ()
    try:
        Settings.parse(extra)
    except ConfigError as error:
        problems = error.problems
    data = {"valid": not problems, "problems": [*problems], "unchecked": UNCHECKED}
    if not problems:
        return Answer(data, (Text("valid", style="green"), Text(UNCHECKED, style="dim")))
    count = counted(len(problems), "problem")
    lines = [Text.assemble(("- ", "red"), plain(problem, 1000)) for problem in problems]
    return Answer(data, (Text(count, style="bold red"), *lines), Code.NO)


def _text(given: str) -> str:
    try:
        if given == "-":
            return sys.stdin.read(MOST_BYTES)
        if given.startswith("@"):
            with Path(given[1:]).open(encoding="utf-8-sig") as file:
                return file.read(MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(Code.USAGE, f"{given} cannot be read: {error}") from error
    return given


def object_of(text: str) -> Mapping[str, object]:
    """A JSON object.

    Raises:
        CommandError: it is none.
    """
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "quote it for the shell, or put it into a file and give @FILE"
        raise CommandError(Code.NO, f"the configuration is no JSON: {error}; {hint}") from error
    if not isinstance(read, dict):
        raise CommandError(Code.NO, "the configuration is no JSON object; give fields in {}")
    return read
