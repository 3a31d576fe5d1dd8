"""Log lines as an operator sees them in a host's own format, and never with a secret."""

import io
import json
import logging
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from netloader.config import Secret
from netloader.log import (
    MAX_CHARS,
    TEXT_FORM,
    JsonFormatter,
    capture,
    emit,
    get_logger,
    quiet_dependencies,
    render_catalogue,
)
from netloader.log_events import EVENTS, LEVELS

OPENED = "netloader.session.opened"
MOVED = "netloader.session.transition"
CLOSED = "netloader.session.closed"
FAILED = "netloader.driver.error"
PLANTED = "hunter2-hunter2-hunter2"


class Host:
    """A host that shows the lines of one logger as text and as JSON, as vLLM does."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)
        self.texts, self.jsons = io.StringIO(), io.StringIO()
        text, jsons = logging.StreamHandler(self.texts), logging.StreamHandler(self.jsons)
        text.setFormatter(
            logging.Formatter("%(levelname)s [%(filename)s:%(lineno)d] %(name)s %(message)s")
        )
        jsons.setFormatter(JsonFormatter())
        self.handlers = (text, jsons)

    def lines(self) -> list[str]:
        return self.texts.getvalue().splitlines()

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.jsons.getvalue().splitlines()]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.delenv(TEXT_FORM, raising=False)
    host = Host("vllm")
    saved = host.logger.level, host.logger.propagate
    for handler in host.handlers:
        host.logger.addHandler(handler)
    host.logger.setLevel(logging.DEBUG)
    host.logger.propagate = False
    yield host
    for handler in host.handlers:
        host.logger.removeHandler(handler)
    host.logger.setLevel(saved[0])
    host.logger.propagate = saved[1]


def here() -> int:
    """The line number of the caller."""
    return sys._getframe(1).f_lineno


# In a host's own format


def test_a_line_shows_where_it_was_emitted_its_logger_event_and_fields(host: Host) -> None:
    log = get_logger("netloader.io.server", base="vllm.netloader", **{"netloader.rank": 3})

    emit(log, OPENED, {"network.peer.address": "10.0.0.1", "note": 'two "words"', "ok": True})
    line = here() - 1

    where = f"DEBUG [test_log.py:{line}] vllm.netloader.io.server "
    fields = r'netloader.rank=3 network.peer.address=10.0.0.1 note="two \"words\"" ok=true'
    assert host.lines() == [f"{where}{OPENED} {fields}"]


@pytest.mark.parametrize(
    ("name", "base", "full"),
    [
        ("netloader.io.client", "netloader", "netloader.io.client"),
        ("io.client", "netloader", "netloader.io.client"),
        ("netloader", "vllm.netloader", "vllm.netloader"),
        ("", "vllm.netloader", "vllm.netloader"),
    ],
)
def test_a_logger_is_named_below_its_base(name: str, base: str, full: str) -> None:
    assert get_logger(name, base=base).name == full


def test_the_fields_travel_on_the_record_in_one_attribute(host: Host) -> None:
    host.handlers[0].setFormatter(logging.Formatter("%(name)s %(netloader)s"))

    emit(get_logger("x", base="vllm.netloader"), OPENED, {"name": "a", "module": "b"})

    fields = {"name": "a", "module": "b", "event": OPENED}
    assert host.lines() == [f"vllm.netloader.x {fields}"]


def test_the_level_is_the_one_of_the_catalogue_or_its_second_one(host: Host) -> None:
    log = get_logger("x", base="vllm.netloader")

    emit(log, CLOSED)
    emit(log, CLOSED, level="warning")

    assert [line.split()[0] for line in host.lines()] == ["INFO", "WARNING"]
    with pytest.raises(
        ValueError, match=f"{CLOSED} is logged at info or warning or debug, not at error"
    ):
        emit(log, CLOSED, level="error")


def test_an_event_outside_the_catalogue_is_our_bug() -> None:
    with pytest.raises(KeyError):
        emit(get_logger("x"), "netloader.something.else")


def test_a_disabled_level_writes_nothing(host: Host) -> None:
    host.logger.setLevel(logging.INFO)
    emit(get_logger("x", base="vllm.netloader"), MOVED, level="debug")

    assert host.lines() == []


def test_an_exception_comes_with_its_stack(host: Host) -> None:
    log = get_logger("x", base="vllm.netloader")
    try:
        raise RuntimeError("broken\nbadly")
    except RuntimeError as error:
        emit(log, FAILED, exc_info=error)
        emit(log, FAILED, exc_info=True)

    assert host.lines()[1] == "Traceback (most recent call last):"
    for line in host.objects():
        assert line["exception.type"] == "builtins.RuntimeError"
        assert line["exception.message"] == r"broken\nbadly"
        assert "Traceback" in line["exception.stacktrace"]


def test_asking_for_the_current_exception_when_there_is_none_is_no_error(host: Host) -> None:
    emit(get_logger("x", base="vllm.netloader"), FAILED, exc_info=True)

    assert not any(key.startswith("exception") for key in host.objects()[0])


def test_the_host_s_structlog_is_left_alone_and_its_bound_context_is_shown(host: Host) -> None:
    with structlog.contextvars.bound_contextvars(request="r1"):
        emit(get_logger("x", base="vllm.netloader"), OPENED)

    assert host.objects()[0]["request"] == "r1"
    assert not structlog.is_configured()


# Values


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("", ""),
        ("line\nbreak\r\x1b[31m\u2028\u202e\x85", r"line\nbreak\r\x1b[31m\u2028\u202e\x85"),
        ("\ud800", r"\ud800"),
        ("grüße 世界", "grüße 世界"),
        ("x" * 600, "x" * (MAX_CHARS - 1) + "…"),
        ("\n" * 600, (r"\n" * 300)[: MAX_CHARS - 1] + "…"),
        (7, 7),
        (False, False),
        (0.5, 0.5),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (2**80, str(2**80)),
        pytest.param(10**5000, "<unprintable int>", id="huge"),
        (None, "None"),
        ([1, "a"], "[1, 'a']"),
        (Secret(PLANTED), "Secret(***)"),
        ([Secret(PLANTED)], "[Secret(***)]"),
        (Unprintable(), "<unprintable Unprintable>"),
    ],
)
def test_any_value_becomes_a_short_printable_scalar(
    host: Host, value: object, written: object
) -> None:
    emit(get_logger("x", base="vllm.netloader"), OPENED, {"v": value})

    assert host.objects()[0]["v"] == written
    assert len(host.lines()) == 1


@pytest.mark.parametrize(
    "key", ["netloader.auth.token", "a.secret", "db.password", "token", "auth_token", "A.TOKEN"]
)
def test_a_field_named_as_a_secret_is_hidden(host: Host, key: str) -> None:
    emit(get_logger("x", base="vllm.netloader"), OPENED, {key: PLANTED})

    assert PLANTED not in host.texts.getvalue() + host.jsons.getvalue()
    assert host.objects()[0][key] == "Secret(***)"


KEYS = st.sampled_from(["peer", "reason", "a.token", "b.secret", "c.password", "detail"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(Secret(PLANTED)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(deadline=None)
@given(fields=st.dictionaries(KEYS, VALUES), bound=st.dictionaries(KEYS, VALUES))
def test_no_field_can_break_a_line_or_show_a_secret(
    fields: Mapping[str, object], bound: Mapping[str, object]
) -> None:
    secret = dict.fromkeys(("a.token", "b.secret", "c.password"), PLANTED)
    host = Host("nlprop")
    try:
        host.logger.setLevel(logging.DEBUG)
        host.logger.propagate = False
        for handler in host.handlers:
            host.logger.addHandler(handler)
        log = get_logger("x", base="nlprop", **bound)
        emit(log, OPENED, {**fields, **secret})
        try:
            raise ValueError(Secret(PLANTED))
        except ValueError:
            emit(log, FAILED, fields, exc_info=True)
    finally:
        for handler in host.handlers:
            host.logger.removeHandler(handler)

    assert PLANTED not in host.texts.getvalue() + host.jsons.getvalue()
    assert len(host.objects()) == 2
    assert host.lines()[0].isprintable()
    assert host.lines()[0].startswith("DEBUG [test_log.py")


# Helpers


def test_dependencies_are_quiet_unless_the_host_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("transitions")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    quiet_dependencies()
    assert logger.level == logging.WARNING

    monkeypatch.setattr(logger, "level", logging.DEBUG)
    quiet_dependencies()
    assert logger.level == logging.DEBUG


def test_capture_sees_every_level_and_thread_and_keeps_the_host_silent(host: Host) -> None:
    log = get_logger("x", base="vllm.netloader", **{"netloader.rank": 0, "a.token": PLANTED})
    with capture() as seen:
        emit(log, MOVED, level="debug")
        thread = threading.Thread(target=emit, args=(log, CLOSED), kwargs={"level": "warning"})
        thread.start()
        thread.join()
    emit(log, OPENED)

    bound = {"netloader.rank": 0, "a.token": "Secret(***)"}
    assert seen == [
        {"event": MOVED, "severity": "DEBUG", **bound},
        {"event": CLOSED, "severity": "WARNING", **bound},
    ]
    assert [line["event"] for line in host.objects()] == [OPENED]


def test_the_catalogue_can_be_read_by_people() -> None:
    text = render_catalogue()

    assert text.startswith("| event | severity | text log | meaning |\n| --- | --- | --- | --- |\n")
    assert "| `netloader.session.closed` | info / warning / debug | sentence | " in text
    assert "| `netloader.session.opened` | info / debug | at debug | " in text
    assert len(text.splitlines()) == len(EVENTS) + 2
    for name, (levels, meaning) in EVENTS.items():
        assert name.startswith("netloader.")
        assert set(levels) <= set(LEVELS)
        assert meaning.endswith(".")
