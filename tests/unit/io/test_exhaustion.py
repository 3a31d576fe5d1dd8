"""Out of file descriptors: honest clients get through or are told, and the log says why."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.fsm.messages import Reject
from netloader.fsm.reasons import Reason
from netloader.io import fill, reception
from netloader.io.clock import monotonic
from tests.support.children import process
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    SOON_S,
    Peer,
    asking,
    contents,
    module_of,
    random,
    serving,
    zoo,
)

SERVER = """
    import logging, os, resource, sys
    from netloader.io import ServerOptions, serve
    from tests.unit.io.helpers import FAST, module_of, random, sealed
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
    free = int(sys.argv[1])
    options = ServerOptions(deadlines=FAST)
    server = sealed(serve(module_of(w=random(1000)), {"model": "x"}, options=options))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", 0))
    except OSError:
        pass
    for file in held[:free]:
        os.close(file)
    print(server.endpoint.port, flush=True)
    sys.stdin.read(1)
"""
EXHAUSTED = "netloader.listener.exhausted"


@contextlib.contextmanager
def starved(free: int) -> Iterator[tuple[Endpoint, list[str]]]:
    """A server that can open as many descriptors; afterwards, the lines of its log."""
    lines: list[str] = []
    with process(SERVER, str(free)) as child:
        assert child.stdout is not None
        yield Endpoint("127.0.0.1", int(child.stdout.readline())), lines
        out, _ = child.communicate("x", timeout=30)
        lines += out.splitlines()


@pytest.mark.parametrize("silent", [1, 10, 60])
def test_an_honest_client_gets_through_a_crowd_of_silent_ones(silent: int) -> None:
    target = module_of(w=random(1000, seed=1))
    # One lane: the server has descriptors for one control and one data connection.
    options = asking(lanes=1, deadlines=replace(FAST, queue_s=SOON_S))
    with contextlib.ExitStack() as stack:
        endpoint, lines = stack.enter_context(starved(free=2))
        for _ in range(silent):
            here = (endpoint.host, endpoint.port)
            stack.enter_context(socket.create_connection(here, SOON_S))
        begun = monotonic()
        outcome = fill(target, [endpoint], {"model": "x"}, options)
        took = monotonic() - begun

    assert outcome.ok, outcome.history()
    assert contents(target) == contents(module_of(w=random(1000)))
    assert took < max(SOON_S / 2, silent / 4)  # one a second is too slow
    told = [line for line in lines if EXHAUSTED in line]
    assert len(told) == 1, lines
    assert "Too many open files" in told[0]
    assert "ulimit -n" in told[0]


def test_where_there_is_no_room_at_all_a_client_is_told_to_come_again() -> None:
    with starved(free=0) as (endpoint, lines):
        begun = monotonic()
        for _ in range(3):
            with Peer.call(endpoint) as peer:
                answer = peer.hear()
                assert isinstance(answer, Reject)
                assert answer.reason == Reason.BUSY.value
                assert answer.retry_after_s > 0
        (attempt,) = fill(module_of(w=random(1000)), [endpoint], {"model": "x"}, asking()).attempts
        assert monotonic() - begun < SOON_S

    assert attempt.reason is Reason.BUSY
    assert attempt.detail == "the server is out of file descriptors"
    assert len([line for line in lines if EXHAUSTED in line]) == 1


CLIENT = """
    import os, resource, sys
    from netloader.config import Deadlines
    from netloader.fsm.identity import Identity
    from netloader.io import ClientOptions, fill
    from netloader.io.describe import describe
    from netloader.config import Endpoint
    from tests.unit.io.helpers import module_of, random
    target = module_of(w=random(1000, seed=1))
    options = ClientOptions(lanes=1, deadlines=Deadlines(stall_s=3, queue_s=0))
    source = Endpoint("127.0.0.1", int(sys.argv[1]))
    fill(target, [source], {"model": "another"}, options)  # what is imported late is there now
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", 0))
    except OSError:
        pass
    for free in range(8):
        describe([source], Identity({}), options)
        outcome = fill(target, [source], {"model": "x"}, options)
        (attempt,) = outcome.attempts
        print(free, outcome.ok, attempt.reason.value, attempt.detail, sep="|")
        os.close(held.pop())
    sys.stdout.flush()
"""


def test_a_client_without_descriptors_has_an_outcome_with_the_reason() -> None:
    with starved(free=20) as (endpoint, _), process(CLIENT, str(endpoint.port)) as client:
        assert client.stdout is not None
        out, _ = client.communicate(timeout=60)
    found = [line.split("|") for line in out.splitlines()]

    assert [int(line[0]) for line in found] == list(range(8)), out
    assert found[-1][1] == "True"
    failed = [line for line in found if line[1] == "False"]
    assert len(failed) >= 3
    assert {line[2] for line in failed} <= {"unreachable", "transfer_failed"}
    assert all("ulimit -n" in line[3] or "EMFILE" in line[3] for line in failed), failed


def test_running_out_of_descriptors_is_a_pause_not_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reception, "PAUSE_S", 0.1)
    accept = socket.socket.accept
    refused: list[int] = []

    def sometimes(sock: socket.socket) -> tuple[socket.socket, Any]:
        if len(refused) < 3:
            refused.append(1)
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(sock)

    with serving(zoo(1)) as server:
        monkeypatch.setattr(socket.socket, "accept", sometimes)
        target, patient = zoo(77), replace(FAST, queue_s=SOON_S)
        assert fill(target, [server.endpoint], IDENTITY, asking(deadlines=patient)).ok
        assert contents(target) == contents(zoo(1))

    assert len(refused) == 3
