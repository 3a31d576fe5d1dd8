"""Exceptions that callers of netloader see. A peer's fault is an event, never an exception."""

from collections.abc import Iterable


class NetloaderError(Exception):
    """Base of every exception that netloader raises on purpose."""


class LocalProtocolError(NetloaderError):
    """Our own driver misused a session: a local event without a row, a step after a failed one."""


class WeightsError(NetloaderError):
    """A tensor or value cannot be sent or filled; the message names it."""


class UnsafeError(NetloaderError):
    """An aborted transfer may still write into the model. Do not use the model or fill it again."""


class TableError(NetloaderError):
    """A transition table is wrong; raised while its module is imported, never in production."""


class ConfigError(NetloaderError):
    """A configuration cannot be used.

    `problems` holds every problem at once, each naming the field, the value and what to do;
    `str()` lists them one a line. Values of secrets are never part of a problem.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        title = f"netloader cannot use its configuration ({count} problem{'s' * (count != 1)}):"
        return "\n  ".join((title, *self.problems))


def cause(error: Exception) -> str:
    """What an error says, for the end of a sentence; of a system call, without its number."""
    return getattr(error, "strerror", None) or str(error)
