"""Commands of vLLM that netloader completes and runs in its own place."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Self

from netloader.cli.answers import CommandError
from netloader.cli.codes import Code
from netloader.cli.configuration import object_of
from netloader.cli.credentials import without_credentials
from netloader.errors import ConfigError, cause
from netloader.vllm_plugin.config.settings import Settings

SERVE: Final = "serve"
FORMAT: Final = "--load-format"
EXTRA: Final = "--model-loader-extra-config"
SERVED: Final = "--served-model-name"
MODEL: Final = "--model"
REMOTE_CODE: Final = "--trust-remote-code"
REFUSE_CODE: Final = "--no-trust-remote-code"
FILE: Final = "--config"
"""A YAML file with options of vLLM, by name."""
KEYS: Final = ("--api-key", "--hf-token")
"""Options whose values are secrets."""
READ: Final = (FORMAT, EXTRA, SERVED, MODEL, REMOTE_CODE, REFUSE_CODE, FILE, *KEYS)
"""The options that are looked at here, so they must be recognized in whatever way vLLM takes them:
it takes `_` for `-`, what only one option begins with, and `.` for a field of an object."""


@dataclass(frozen=True, slots=True)
class VllmCommand:
    """A command that starts vLLM, and what vLLM reads in it."""

    program: tuple[str, ...]
    """Up to the word `serve`; empty without that word."""
    words: tuple[str, ...]
    """What follows."""
    filed: tuple[str, ...]
    """The options of the file that `--config` names, as words."""

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """Read a command.

        Raises:
            CommandError: an option that is looked at here is not written in full, or the file of
                options cannot be read.
        """
        start = words.index(SERVE) + 1 if SERVE in words else 0
        program, rest = tuple(words[:start]), tuple(words[start:])
        _check_full(rest)
        if any(word.startswith(f"{FILE}=") for word in rest):  # vLLM overlooks the file then
            raise unusable(f"give {FILE} and the file as two words")
        filed = tuple(word for path in taken(rest, FILE)[1] for word in _options_in(path))
        _check_full(filed)
        return cls(program, rest, filed)

    def has(self, option: str) -> bool:
        """Whether an option is given, on the command line or in the file."""
        return any(_name(word) == option for word in (*self.filed, *self.words))

    def check_format(self, why: str) -> None:
        """Refuse another load format than netloader's.

        Raises:
            CommandError: it is another one; the message ends with `why`.
        """
        value = self._value(FORMAT)
        if value not in (None, "netloader"):
            raise unusable(f"{FORMAT} {value}: {why}")

    def extra(self) -> Mapping[str, object]:
        """The extra config that vLLM would use.

        Raises:
            CommandError: it is no JSON object.
        """
        given = self._value(EXTRA)
        return {} if given is None else object_of(given)

    def completed(
        self, extra: Mapping[str, object], model: Sequence[str] = (), further: Sequence[str] = ()
    ) -> list[str]:
        """The words of the command with netloader's load format and this extra config.

        Raises:
            CommandError: the extra config holds a credential, which cannot be written to a file.
        """
        rest, _ = taken(taken(self.words, FORMAT)[0], EXTRA)
        ours = (FORMAT, "netloader", EXTRA, json.dumps(without_credentials(extra)))
        return [*self.program, *model, *rest, *further, *ours]

    def _value(self, option: str) -> str | None:
        """The last value of an option; as for vLLM, the command line comes after the file."""
        values = taken((*self.filed, *self.words), option)[1]
        return values[-1] if values else None


def settings_of(extra: Mapping[str, object]) -> Settings:
    """The settings that an instance with this extra config has.

    Raises:
        CommandError: they cannot be used.
    """
    try:
        return Settings.parse(extra)
    except ConfigError as error:
        raise unusable("; ".join(error.problems)) from error


def taken(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The words without an option that is written in full, and the values that it had."""
    rest: list[str] = []
    values: list[str] = []
    left = iter(words)
    for word in left:
        if _name(word) != option:
            rest.append(word)
        else:
            _, given, value = word.partition("=")
            values.append(value if given else next(left, ""))
    return rest, values


def shown(command: Sequence[str]) -> list[str]:
    """The words of a command for others to read: without the keys that vLLM is given in it."""
    told: list[str] = []
    hidden = False
    for word in command:
        name, given, _ = word.partition("=")
        if word.startswith("-"):
            key = _name(word) in KEYS
            hidden = key and not given
            told.append(f"{name}=***" if key and given else word)
        else:
            told.append("***" if hidden else word)
    return told


def _name(word: str) -> str:
    """The name of an option as vLLM reads it, with what follows a dot."""
    name, dot, field = word.partition("=")[0].partition(".")
    return name.replace("_", "-") + dot + field


def _check_full(words: Sequence[str]) -> None:
    """Refuse what vLLM would take for an option that is looked at here, and `taken` would not.

    Raises:
        CommandError: a word is such an option; its value is not shown.
    """
    for word in words:
        name, dot, _ = _name(word).partition(".")
        if not name.startswith("--") or name == "--":
            continue
        if name not in READ and (full := next((o for o in READ if o.startswith(name)), None)):
            raise unusable(f"{name} is short for {full}; write it in full")
        if name in READ and dot:
            whole = "one JSON object" if name == EXTRA else "one word, without a dot"
            raise unusable(f"give {name} as {whole}")


def _options_in(path: str) -> Iterator[str]:
    """The options of a file, as the words that vLLM makes of them."""
    for name, value in _file(path).items():
        match value:
            case False:
                continue
            case True:
                yield f"--{name}"
            case dict():
                yield f"--{name}={json.dumps(value, default=str)}"
            case list():
                yield from (f"--{name}", *map(str, value))
            case _:
                yield f"--{name}={value}"


def _file(path: str) -> Mapping[object, object]:
    """The options of a file, by name.

    Raises:
        CommandError: it cannot be read; nothing of what it holds is shown.
    """
    where = f"{FILE} {path}"
    if not path:
        raise unusable(f"give {FILE} and the file as two words")
    try:
        import yaml  # vLLM brings it
    except ImportError as error:
        what = f"{where} cannot be read without PyYAML, so its options could be overridden unseen"
        raise unusable(f"{what}; install it, or write them into the command") from error
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unusable(f"{where} cannot be read: {cause(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", at line {mark.line + 1}"
        raise unusable(f"{where} is no YAML{line}") from None  # the error quotes the file
    if not isinstance(options, dict):
        raise unusable(f"{where} holds no options by name")
    return options


def unusable(problem: str) -> CommandError:
    """What to raise for a command line that cannot be used."""
    return CommandError(Code.USAGE, problem)


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
