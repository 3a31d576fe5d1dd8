"""With which status a command exits: part of its interface, for scripts."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class Code(IntEnum):
    """The exit status of a command; MEANINGS says what each means."""

    OK = 0
    NO = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    FAILED = 5
    INTERRUPTED = 130


MEANINGS: Final[Mapping[Code, str]] = MappingProxyType(
    {
        Code.OK: "It is done, or the answer is yes.",
        Code.NO: "The answer is no: weights, settings or identities differ, or are not valid.",
        Code.USAGE: "The command line cannot be used, or typer and rich are not installed.",
        Code.UNREACHABLE: "No source could be reached, or none answered in time.",
        Code.REFUSED: "A source answered and refused: its reason is in the message.",
        Code.FAILED: "Something failed on the way, or on this side: a transfer, a file, a port.",
        Code.INTERRUPTED: "The command was interrupted (SIGINT, SIGTERM).",
    }
)


def render_codes() -> str:
    """MEANINGS as a Markdown table."""
    rows = (f"| {code.value} | `{code.name.lower()}` | {MEANINGS[code]} |" for code in Code)
    return "\n".join(("| status | name | meaning |", "| --- | --- | --- |", *rows)) + "\n"
