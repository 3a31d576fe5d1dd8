"""Sources that failed: asked last by every process of this user on the host, for a while."""

import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from netloader.config import Endpoint
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io import failed_sources, fill
from netloader.io.clock import monotonic
from netloader.io.failed_sources import AVOIDED_S, MOST, failed_last, heard
from netloader.io.host_notes import users_folder
from netloader.io.outcome import Attempt
from tests.support.children import process
from tests.unit.io.helpers import IDENTITY, asking, module_of, random, serving

A, A2, B, C = (Endpoint(*at) for at in (("10.0.0.1", 1), ("10.0.0.1", 2), ("b", 1), ("fd00::c", 1)))
ALL = (A, A2, B, C)
FAILS = """
    import sys
    from netloader.config import Endpoint
    from netloader.fsm.reasons import Reason
    from netloader.io.failed_sources import heard
    from netloader.io.outcome import Attempt
    heard(Attempt(Endpoint.parse(sys.argv[1]), Reason.DIGEST_MISMATCH, "", 0, {}))
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in this test, here and in its child processes, concerns no other."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def ended(source: Endpoint, reason: Reason, seconds: float = 0.0) -> None:
    heard(Attempt(source, reason, "", 0, {State.LISTEN: seconds}))


def test_a_source_that_failed_goes_last_and_its_host_before_it() -> None:
    assert failed_last(ALL) == ALL
    ended(A, Reason.DIGEST_MISMATCH)
    assert failed_last(ALL) == (B, C, A2, A)
    assert failed_last(reversed(ALL)) == (C, B, A2, A)
    assert failed_last([A]) == (A,), "it is the only one"
    ended(C, Reason.TRANSFER_STALLED)
    assert failed_last(ALL) == (B, A2, A, C)


def test_it_is_another_process_that_hears_of_it_and_one_that_is_gone_that_said_it() -> None:
    with process(FAILS, str(B)) as child:
        assert child.wait() == 0
    assert failed_last(ALL) == (A, A2, C, B)


def test_a_minute_later_it_is_as_good_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    ended(A, Reason.CONNECTION_LOST)
    monkeypatch.setattr(failed_sources, "monotonic", lambda: monotonic() + AVOIDED_S - 30)
    assert failed_last(ALL)[-1] == A
    monkeypatch.setattr(failed_sources, "monotonic", lambda: monotonic() + AVOIDED_S)
    assert failed_last(ALL) == ALL
    assert [*users_folder().iterdir()] == []


@pytest.mark.parametrize("reason", Reason)
def test_only_a_failure_counts(reason: Reason) -> None:
    ended(A, reason)
    harmless = {
        *(Reason.BUSY, Reason.NOT_READY, Reason.REFERRED, Reason.NOT_SERVING, Reason.STOPPED),
        *(Reason.IDENTITY_MISMATCH, Reason.MANIFEST_MISMATCH, Reason.NOTHING_IN_COMMON),
        *(Reason.UNREACHABLE, Reason.VERIFIED, Reason.NOT_NEEDED, Reason.DESCRIBED),
    }
    failed = failed_last(ALL) != ALL
    assert failed is (reason in failed_sources.FAILURES)
    assert not failed or reason not in harmless


def test_a_source_that_lets_time_pass_counts_and_one_that_delivers_is_forgotten() -> None:
    ended(A, Reason.UNREACHABLE, seconds=5.0)
    assert failed_last(ALL)[-1] == A
    ended(A, Reason.VERIFIED)
    assert failed_last(ALL) == ALL


def test_garbage_is_ignored_and_no_more_than_so_many_are_kept() -> None:
    folder = users_folder()
    (folder / "failed-nonsense").touch()
    (folder / "failed-folder").mkdir()
    (folder / "failed-10.0.0.1:1").symlink_to("/nowhere")
    for path in folder.iterdir():
        os.utime(path, (monotonic(), monotonic()), follow_symlinks=False)
    assert failed_last([B, C]) == (B, C)
    for number in range(MOST + 20):
        ended(Endpoint("10.1.1.1", number + 1), Reason.DIGEST_MISMATCH)
    assert len([*folder.iterdir()]) <= MOST


def test_a_folder_that_cannot_be_used_costs_nothing() -> None:
    folder = users_folder()
    folder.rmdir()
    folder.touch()
    ended(A, Reason.DIGEST_MISMATCH)
    assert failed_last(ALL) == ALL


def test_a_fill_asks_the_source_last_at_which_another_one_failed() -> None:
    """A real one: the first source speaks another protocol."""
    model = module_of(weight=random(100, 100))

    def answer() -> None:
        guest, _ = stranger.accept()
        with guest:
            guest.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            guest.recv(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as stranger, serving(model) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        bad = Endpoint(*stranger.getsockname())
        sources = [bad, server.endpoint]
        into = module_of(weight=torch.zeros(100, 100))
        options = asking(on_attempt=heard)
        outcome = fill(into, failed_last(sources), IDENTITY, options)
        thread.join()
        reasons = [attempt.reason for attempt in outcome.attempts]
        assert reasons == [Reason.PROTOCOL_VIOLATION, Reason.VERIFIED]
        assert failed_last(sources) == (server.endpoint, bad)
        again = fill(into, failed_last(sources), IDENTITY, options)
        assert [attempt.source for attempt in again.attempts] == [server.endpoint]
