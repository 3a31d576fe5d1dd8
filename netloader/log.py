"""Log lines. The only module that imports `structlog`; `log_events` has the catalogue.

A library logs and never configures: loggers are wrapped one by one, structlog's global
configuration stays the host's. Inside vLLM the base name is "vllm.netloader", because vLLM shows
only loggers below "vllm". The text of a record is a sentence for operators (`log_text`), or
`event key=value ...`; a record without a sentence is shown at level debug. The fields travel on the
record as `record.netloader`, from which `JsonFormatter` writes one object a line, for every record.
"""

import errno
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import structlog
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict, Processor, ProcessorReturnValue

from netloader.config import Secret
from netloader.log_events import EVENTS, LEVELS, Level
from netloader.log_text import SENTENCES, sentence_of, text_of

Logger: TypeAlias = structlog.stdlib.BoundLogger
"""What `get_logger` returns; `.bind(**fields)` gives one whose lines carry those fields."""

TEXT_FORM: Final = "NETLOADER_LOG_TEXT"
"""An environment variable: `fields` gives every record the text `event key=value ...` and shows it
at its severity, for programs that read the text log. LOG_JSON is the better source for them."""
FIELDS: Final = "fields"

REDACTED: Final = str(Secret(""))
MAX_CHARS: Final = 500
"""Longest text value: a sentence fits, and a peer cannot flood the log with one field."""

_SECRET_KEY = re.compile(r"(^|[._])(token|secret|password)$", re.IGNORECASE)
_CALLER_OF_EMIT = 7  # frames: deliver, four of structlog, emit, the caller


def redact(_logger: object, _method: str, event_dict: EventDict) -> EventDict:
    """Processor: make every field a short printable scalar, and secrets unreadable."""
    kept = ("event", "exc_info")
    return {k: v if k in kept else _scalar(k, v) for k, v in event_dict.items()}


def _scalar(key: str, value: object) -> str | int | float | bool:
    if _SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:  # bool too
        return value
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise; the line must be written
        text = f"<unprintable {type(value).__name__}>"
    return _printable(text)


def _printable(text: str) -> str:
    """`text` in one line without control characters, at most MAX_CHARS long."""
    head = text[: MAX_CHARS + 1]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 1] + "…"


def wanted(logger: logging.Logger, method: str, event_dict: EventDict) -> EventDict:
    """Processor: end here for a record that neither the host nor a JSON file takes."""
    severity = LEVELS[method]
    files = _line_handlers_above(logger)
    if _enabled(logger, severity) or any(severity >= file.threshold for file in files):
        return event_dict
    raise structlog.DropEvent


def deliver(logger: logging.Logger, method: str, event_dict: EventDict) -> ProcessorReturnValue:
    """Processor, the last: hand the record to the host, or else to the JSON files alone.

    The host gets a record that has no sentence at level debug. Files go by severity.
    """
    fields = dict(event_dict)
    exc_info = _exc_info(fields.pop("exc_info", None))
    level = severity = LEVELS[method]
    sentence = None
    if severity > logging.DEBUG and os.environ.get(TEXT_FORM) != FIELDS:
        sentence = sentence_of(fields)
        level = severity if sentence else logging.DEBUG
    text = sentence or text_of(fields)
    extra = {"netloader": fields, "netloader_severity": severity}
    if _enabled(logger, level):
        logger.log(level, text, extra=extra, exc_info=exc_info, stacklevel=_CALLER_OF_EMIT)
    else:
        record = logger.makeRecord(
            logger.name, severity, "(unknown file)", 0, text, (), exc_info, extra=extra
        )
        for file in _line_handlers_above(logger):
            file.handle(record)
    raise structlog.DropEvent


def _enabled(logger: logging.Logger, level: int) -> bool:
    return not logger.disabled and level >= logger.getEffectiveLevel()


def _exc_info(problem: Any) -> Any:
    """What `logging` calls exc_info; None where there is no exception."""
    if isinstance(problem, BaseException):
        return type(problem), problem, problem.__traceback__
    return sys.exc_info() if problem else None


Sink: TypeAlias = Callable[[Mapping[str, object]], None]
SINKS: Final[list[Sink]] = []
"""What takes every record of this process, at every level, before anybody else; the fields of a
record are as they were given. Metrics are made so. What a sink raises is lost."""


def tell_sinks(_logger: object, _method: str, event_dict: EventDict) -> EventDict:
    """Processor, the first: hand the record to all sinks."""
    for sink in SINKS:
        with suppress(Exception):
            sink(event_dict)
    return event_dict


PROCESSORS: Final[list[Processor]] = [
    tell_sinks,
    wanted,
    merge_contextvars,
    redact,
    deliver,
]


def get_logger(name: str, base: str = "netloader", **context: object) -> Logger:
    """Return the logger `base.name`, bound to `context`; a leading "netloader." is dropped."""
    path = ".".join(part for part in (base, name.removeprefix("netloader").lstrip(".")) if part)
    logger: Logger = structlog.wrap_logger(
        logging.getLogger(path),
        processors=PROCESSORS,
        wrapper_class=structlog.stdlib.BoundLogger,
    ).bind(**context)
    return logger


def emit(
    logger: Logger,
    event: str,
    fields: Mapping[str, object] = MappingProxyType({}),
    *,
    level: Level | None = None,
    exc_info: BaseException | bool = False,
) -> None:
    """Write one record; the only way to log.

    Its severity is the event's usual one; `level` may name another of those in EVENTS. Raises
    KeyError for an event outside EVENTS and ValueError for a level that the event does not have.
    """
    levels = EVENTS[event].levels
    chosen = levels[0] if level is None else level
    if chosen not in levels:
        msg = f"{event} is logged at {' or '.join(levels)}, not at {chosen}"
        raise ValueError(msg)
    problem = {"exc_info": exc_info} if exc_info else {}
    logger.log(LEVELS[chosen], event, **fields, **problem)


class JsonFormatter(logging.Formatter):
    """One JSON object per record: of netloader with all fields, of others with the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line of ASCII, without the newline."""
        foreign = {"event": "foreign", "message": _printable(record.getMessage())}
        fields: dict[str, object] = getattr(record, "netloader", foreign)
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        envelope = {
            "timestamp": moment.replace("+00:00", "Z"),
            "severity": logging.getLevelName(_severity(record)),
            "logger": record.name,
            "event": fields["event"],
            "process.pid": record.process,
            "thread.name": record.threadName,
        }
        error = self._exception(record)
        return json.dumps({**envelope, **fields, **error, **envelope})

    def _exception(self, record: logging.LogRecord) -> dict[str, str]:
        if not record.exc_info or record.exc_info[1] is None:
            return {}
        kind, error = type(record.exc_info[1]), record.exc_info[1]
        return {
            "exception.type": f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(_scalar("exception.message", error)),
            "exception.stacktrace": self.formatException(record.exc_info),
        }


def _severity(record: logging.LogRecord) -> int:
    """The severity of a record; the host may show those of netloader at a lower level."""
    severity: int = getattr(record, "netloader_severity", record.levelno)
    return severity


class _LineHandler(logging.Handler):
    """Appends to a file, or to the process's standard error, with one write() per line.

    So several processes can share the target. The file is opened for every line (ten or so a
    session), so it may be rotated. Descriptor 2 is used rather than `sys.stderr`, which vLLM wraps
    to put a prefix before every line.
    """

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target, self.threshold = target, logging.INFO
        self._failing = False
        self.setFormatter(JsonFormatter())
        os.close(self._open())  # a path that cannot be written fails now, not at the first line

    def _open(self) -> int:
        if self.target == "stderr":
            return os.dup(2)
        # non-blocking: a pipe without a reader must be an error, not a hang
        return os.open(self.target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)

    def filter(self, record: logging.LogRecord) -> bool:
        """Take what is grave enough, whatever the level at which the host shows it."""
        return _severity(record) >= self.threshold and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record. Never raises: the first of several failures is reported on stderr."""
        try:
            line = self.format(record).encode() + b"\n"
            descriptor = self._open()
            try:
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, "only a part of a line could be written")
            finally:
                os.close(descriptor)
            self._failing = False
        except Exception as error:  # noqa: BLE001 - the contract of logging.Handler
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        """Say once that lines are lost, until one can be written again."""
        if self._failing:
            return
        self._failing = True
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        text = f"netloader: {self.target}: {why}; JSON log lines are lost until it can be written"
        with suppress(Exception):  # there may be no stderr either
            sys.stderr.write(_printable(text) + "\n")


def configure_json(
    target: str, base: str = "netloader", level: int = logging.INFO
) -> Callable[[], None]:
    """Write records of `base` from severity `level` up as JSON to `target`: a path, or "stderr".

    For programs, never for libraries. The levels of the host's loggers stay as they are, and hide
    none of our records from the file. A second call for the same target and base changes only the
    level. Returns a function that undoes it. Raises OSError when the path cannot be written.
    """
    quiet_dependencies()
    path = target if target == "stderr" else str(Path(target).absolute())
    logger = logging.getLogger(base)
    handler = next((known for known in _line_handlers(logger) if known.target == path), None)
    if handler is None:
        handler = _LineHandler(path)
        logger.addHandler(handler)
    handler.threshold = level
    return partial(logger.removeHandler, handler)


def _line_handlers(logger: logging.Logger) -> list[_LineHandler]:
    return [handler for handler in logger.handlers if isinstance(handler, _LineHandler)]


def _line_handlers_above(logger: logging.Logger) -> list[_LineHandler]:
    """Those that `logger` would pass a record to."""
    found: list[_LineHandler] = []
    at: logging.Logger | None = logger
    while at is not None:
        found += _line_handlers(at)
        at = at.parent if at.propagate else None
    return found


def quiet_dependencies() -> None:
    """Stop `transitions` from logging three lines per event, unless the host set its level."""
    logger = logging.getLogger("transitions")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


@contextmanager
def capture() -> Iterator[list[dict[str, Any]]]:
    """For tests: collect the lines of all our loggers, at every level, instead of writing them.

    Yields the list they arrive in: dicts with `event`, `severity` (as in "INFO") and the fields.
    """
    seen: list[dict[str, Any]] = []

    def collect(_logger: object, method: str, event_dict: EventDict) -> ProcessorReturnValue:
        seen.append({"severity": method.upper(), **event_dict})
        raise structlog.DropEvent

    usual = PROCESSORS[:]
    PROCESSORS[:] = [tell_sinks, merge_contextvars, redact, collect]
    try:
        yield seen
    finally:
        PROCESSORS[:] = usual


def render_catalogue() -> str:
    """EVENTS as a Markdown table."""
    rows = (
        f"| `{name}` | {' / '.join(levels)} | {_shown(name)} | {meaning} |"
        for name, (levels, meaning) in EVENTS.items()
    )
    head = ("| event | severity | text log | meaning |", "| --- | --- | --- | --- |")
    return "\n".join((*head, *rows)) + "\n"


def _shown(event: str) -> str:
    return "sentence" if event in SENTENCES else "at debug"
