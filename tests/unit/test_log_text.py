"""What an operator reads: a sentence for each event that is his business, and no other line."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.log import (
    FIELDS,
    TEXT_FORM,
    configure_json,
    emit,
    get_logger,
    render_catalogue,
)
from netloader.log_events import EVENTS, Level
from netloader.log_text import ADVICE, SENTENCES, sentence_of
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    Peer,
    asking,
    closed_port,
    eventually,
    sealed,
    serving,
    zoo,
)
from tests.unit.log_examples import SAID, SILENT


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The text log of a host at level INFO, as vLLM's is."""
    monkeypatch.delenv(TEXT_FORM, raising=False)
    logger, written = logging.getLogger("netloader"), io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    saved = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield written
    logger.removeHandler(handler)
    logger.setLevel(saved[0])
    logger.propagate = saved[1]


@pytest.mark.parametrize("what", SAID)
def test_an_event_is_told_in_a_sentence_that_ends_with_its_name(
    what: str, text: io.StringIO
) -> None:
    event, fields, sentence = SAID[what]

    emit(get_logger("x"), event, fields)

    level = EVENTS[event].levels[0].upper()
    assert text.getvalue() == f"{level} {sentence}. [{event}]\n"


@pytest.mark.parametrize("what", SILENT)
def test_what_is_no_operator_s_business_is_shown_at_debug(what: str, text: io.StringIO) -> None:
    event, fields = SILENT[what]
    level: Level = "warning" if "warning" in EVENTS[event].levels else "info"

    emit(get_logger("x"), event, fields, level=level)
    assert text.getvalue() == ""

    logging.getLogger("netloader").setLevel(logging.DEBUG)
    emit(get_logger("x"), event, fields, level=level)
    assert text.getvalue().startswith(f"DEBUG {event}")


def test_json_files_get_every_record_whatever_the_text_log_shows(
    text: io.StringIO, tmp_path: Any
) -> None:
    path = tmp_path / "log"
    logging.getLogger("netloader").setLevel(logging.ERROR)
    undo = configure_json(str(path))
    for event in EVENTS:
        emit(get_logger("x"), event, {"n": 1})
    emit(get_logger("x"), "netloader.session.opened", level="debug")
    undo()

    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line["severity"]) for line in found] == [
        (event, levels[0].upper()) for event, (levels, _) in EVENTS.items() if levels[0] != "debug"
    ]
    assert all(line["n"] == 1 for line in found)
    assert logging.getLogger("netloader").level == logging.ERROR
    assert "netloader.session.opened" not in text.getvalue()


def test_a_program_that_reads_the_text_log_can_have_the_fields(
    text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TEXT_FORM, FIELDS)

    emit(get_logger("x"), "netloader.transfer.started", {"netloader.lanes": 4})

    assert text.getvalue() == "INFO netloader.transfer.started netloader.lanes=4\n"


def test_every_warning_and_error_has_a_sentence_except_what_another_one_tells() -> None:
    grave = {name for name, (levels, _) in EVENTS.items() if levels[0] in ("warning", "error")}

    assert grave - set(SENTENCES) == {"netloader.transfer.aborted"}  # its session is told
    assert set(SENTENCES) <= set(EVENTS)
    assert set(ADVICE) <= {reason.value for reason in Reason}
    assert "| `netloader.transfer.aborted` | warning | at debug |" in render_catalogue()


KEYS = sorted({key for _, fields, _ in SAID.values() for key in fields} | {"netloader.purpose"})
VALUES = st.one_of(st.text(max_size=9), st.integers(), st.booleans(), st.floats(0, 1e15))


@given(event=st.sampled_from(sorted(EVENTS)), fields=st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_a_sentence_is_made_of_any_fields(event: str, fields: dict[str, Any]) -> None:
    sentence = sentence_of({"event": event, **fields})

    assert sentence is None or sentence.endswith(f"[{event}]")


# -- over real sockets -----------------------------------------------------------------------------


def test_a_load_after_a_dead_source_is_two_sentences_of_the_client(text: io.StringIO) -> None:
    dead = closed_port()
    with serving(zoo(1)) as server:
        assert fill(zoo(2), [dead, sealed(server).endpoint], IDENTITY, asking()).ok
        assert eventually(lambda: "Sent" in text.getvalue())

    told = text.getvalue().splitlines()
    assert told[0].startswith("INFO Listening for clients at ")
    assert told[1].startswith(f"WARNING Source {dead} delivers no weights: unreachable (")
    loaded, sent = sorted(told[2:4])
    assert loaded.startswith("INFO Loaded ")
    assert f"from {server.endpoint} (attempt 2) in " in loaded
    assert loaded.endswith("), verified with xxh3_128. [netloader.session.closed]")
    assert sent.startswith("INFO Sent ")
    assert told[4:] == [
        f"INFO Stopped listening at {server.endpoint}. [netloader.listener.stopped]"
    ]


def test_a_busy_source_is_told_once_however_often_it_is_asked(
    text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netloader.io.worker.RETRY_AFTER_S", 0.05)
    with serving(zoo(1), max_clients=1) as server, Peer.call(server.endpoint) as peer:
        peer.offered()
        options = asking(deadlines=replace(FAST, queue_s=1))
        outcome = fill(zoo(2), [server.endpoint], IDENTITY, options)
        told = text.getvalue().splitlines()

    assert len(outcome.attempts) > 2
    waits = f"INFO {server.endpoint}: busy or not ready; asked again for up to 1.0 s."
    assert told[1:] == [f"{waits} [netloader.source.waiting]"]
