"""Log lines as JSON, one object each, in a file that others may move, fill up or share."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from netloader.log import JsonFormatter, configure_json, emit, get_logger

OPENED = "netloader.session.opened"
MOVED = "netloader.session.transition"
CLOSED = "netloader.session.closed"


def test_a_json_line_has_the_promised_fields(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    undo = configure_json(str(path), base="nljson")
    emit(
        get_logger("io", base="nljson"),
        CLOSED,
        {"netloader.side": "client", "netloader.transfer.bytes": 5, "severity": "forged"},
        level="warning",
    )
    undo()
    line = json.loads(path.read_text())

    stamp = line.pop("timestamp")
    assert stamp.endswith("Z")
    assert len(stamp) == len("2026-01-01T00:00:00.000Z")
    assert line == {
        "severity": "WARNING",
        "logger": "nljson.io",
        "event": CLOSED,
        "process.pid": os.getpid(),
        "thread.name": threading.current_thread().name,
        "netloader.side": "client",
        "netloader.transfer.bytes": 5,
    }


def test_a_record_of_another_logger_becomes_json_too() -> None:
    record = logging.LogRecord("other", logging.INFO, "f.py", 1, "hello %s\n", ("x",), None)

    line = json.loads(JsonFormatter().format(record))

    assert (line["event"], line["message"], line["logger"]) == ("foreign", r"hello x\n", "other")


def test_info_lines_reach_the_file_though_the_host_shows_warnings_only(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    logger = logging.getLogger("nllevel")
    log = get_logger("x", base="nllevel")

    undo = configure_json(str(path), base="nllevel")
    emit(log, OPENED)
    emit(log, MOVED, level="debug")
    undo()
    emit(log, OPENED)

    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [OPENED]
    assert logger.level == logging.NOTSET
    assert logger.handlers == []


def test_configuring_twice_writes_each_line_once_and_can_change_the_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = get_logger("x", base="nltwice")
    first = configure_json("log.jsonl", base="nltwice")
    second = configure_json(str(tmp_path / "log.jsonl"), base="nltwice", level=logging.DEBUG)
    emit(log, MOVED, level="debug")
    monkeypatch.chdir("/")
    emit(log, OPENED)

    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    second()
    first()
    first()
    assert logging.getLogger("nltwice").handlers == []


def test_two_targets_are_undone_in_any_order(tmp_path: Path) -> None:
    logger = logging.getLogger("nlpair")
    logger.setLevel(logging.ERROR)
    one = configure_json(str(tmp_path / "1"), base="nlpair")
    two = configure_json(str(tmp_path / "2"), base="nlpair")

    one()
    emit(get_logger("x", base="nlpair"), OPENED)
    two()

    assert (tmp_path / "1").read_text() == ""
    assert len((tmp_path / "2").read_text().splitlines()) == 1
    assert logger.level == logging.ERROR


def test_stderr_is_the_process_s_own_however_sys_stderr_is_wrapped(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    undo = configure_json("stderr", base="nlerr")
    emit(get_logger("x", base="nlerr"), OPENED)
    undo()

    assert json.loads(capfd.readouterr().err)["event"] == OPENED


def test_a_path_that_cannot_be_written_fails_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing" / "log", tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match=str(path)):
            configure_json(str(path), base="nlbad")
    assert logging.getLogger("nlbad").handlers == []


def test_a_file_that_fails_later_never_raises_into_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    undo = configure_json(str(folder / "log"), base="nllater")
    (folder / "log").unlink()
    folder.rmdir()

    emit(get_logger("x", base="nllater"), OPENED)
    undo()

    assert "No such file" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_a_disk_that_is_full_is_told_once_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    undo = configure_json("/dev/full", base="nlfull")
    for _ in range(5):
        emit(get_logger("x", base="nlfull"), OPENED)
    undo()

    said = capsys.readouterr().err
    assert said.splitlines() == [
        (
            "netloader: /dev/full: No space left on device; "
            "JSON log lines are lost until it can be written"
        )
    ]


def test_a_failure_after_lines_could_be_written_again_is_told_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, log = tmp_path / "logs", get_logger("x", base="nlagain")
    folder.mkdir()
    undo = configure_json(str(folder / "log"), base="nlagain")
    for _ in range(2):
        folder.rename(tmp_path / "elsewhere")
        emit(log, OPENED)
        (tmp_path / "elsewhere").rename(folder)
        emit(log, OPENED)
    undo()

    assert len((folder / "log").read_text().splitlines()) == 2
    assert capsys.readouterr().err.count("No such file") == 2


def test_without_a_stderr_a_failure_to_write_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undo = configure_json("/dev/full", base="nlnoerr")
    monkeypatch.setattr(sys, "stderr", None)
    emit(get_logger("x", base="nlnoerr"), OPENED)
    undo()


def test_texts_that_are_not_utf_8_are_logged_as_escapes(tmp_path: Path) -> None:
    odd = os.fsdecode(b"mod\xffel")
    path = tmp_path / "log"
    undo = configure_json(str(path), base="nlodd")
    emit(
        get_logger("x", base="nlodd"), OPENED, {"netloader.model": odd, "netloader.path": Path(odd)}
    )
    emit(get_logger("x", base="nlodd"), "netloader.driver.error", exc_info=ValueError(odd))
    undo()

    lines = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert lines[0]["netloader.model"] == lines[0]["netloader.path"] == r"mod\udcffel"
    assert lines[1]["exception.message"] == r"mod\udcffel"


def test_a_rotated_file_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = get_logger("x", base="nlrotate")
    undo = configure_json(str(path), base="nlrotate")
    emit(log, OPENED)
    path.rename(tmp_path / "log.1")
    emit(log, CLOSED)
    undo()

    assert json.loads((tmp_path / "log.1").read_text())["event"] == OPENED
    assert json.loads(path.read_text())["event"] == CLOSED


WRITER = """
import sys
from netloader.log import configure_json, emit, get_logger
configure_json(sys.argv[1])
log = get_logger("x")
for number in range(200):
    emit(log, "netloader.session.opened", {f"field{i}": "x" * 490 for i in range(40)})
"""


def test_processes_share_one_file_without_mixing_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(3)]

    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 600
    assert {line["process.pid"] for line in lines} == {writer.pid for writer in writers}
