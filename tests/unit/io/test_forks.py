"""Processes that are forked beside a server or a client, as data loaders and pools are."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netloader.config import Endpoint
from netloader.fsm.messages import Reject
from netloader.io import fill
from netloader.io.listener import bind
from tests.support.children import process
from tests.unit.io.helpers import (
    IDENTITY,
    MIB,
    Peer,
    asking,
    contents,
    eventually,
    module_of,
    random,
    serving,
    zoo,
)


@contextlib.contextmanager
def forked(work: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A child that does some work and then lives on, doing nothing, for the time of a test."""
    ready, told = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(told, json.dumps(work()).encode() or b"null")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    try:
        yield ready
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)


def refused(endpoint: Endpoint) -> bool:
    """Whether nobody listens there any more."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def descriptors() -> list[str]:
    """What this process has open: sockets and epoll sets by number, the rest by name."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            name = str(link.readlink())
            found.append(f"{link.name} {name}" if "eventpoll" in name else name)
    return found


def connections() -> list[str]:
    return [name for name in descriptors() if "socket" in name or "eventpoll" in name]


def test_a_forked_child_keeps_neither_the_port_nor_a_connection() -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.offered()
        with forked() as ready:
            assert os.read(ready, 100)
            server.close()

            assert isinstance(peer.hear(), Reject)
            assert peer.hear() is None
            assert refused(server.endpoint)
            bind(server.endpoint.host, server.endpoint.port).close()


def test_a_forked_child_keeps_nothing_open_of_a_server_that_was_killed() -> None:
    code = """
        import os, signal, sys
        from torch import nn
        from netloader.io import serve
        server = serve(nn.Linear(8, 8), {"model": "x"})
        if (child := os.fork()) == 0:
            os.close(1)
            signal.pause()
        print(server.endpoint.port, child, flush=True)
        sys.stdin.read()
    """
    with process(code) as parent:
        assert parent.stdout is not None
        port, child = map(int, parent.stdout.readline().split())
        try:
            with Peer.call(Endpoint("127.0.0.1", port)) as peer:
                parent.kill()
                parent.wait()
                assert peer.hear() is None
                assert eventually(lambda: refused(Endpoint("127.0.0.1", port)))
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_fork_in_the_middle_of_a_transfer_takes_no_descriptor_along_and_disturbs_nothing(
    lanes: int,
) -> None:
    def fork(done: int, total: int) -> None:
        if total // 3 < done and once.acquire(blocking=False):
            ready = stack.enter_context(forked(connections))
            inherited.extend(json.loads(os.read(ready, 1 << 16)))

    once = threading.Lock()
    inherited: list[str] = []
    source, target = module_of(w=random(16 * MIB)), module_of(w=random(16 * MIB, seed=1))
    before = connections()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(source))
        outcome = fill(target, [server.endpoint], IDENTITY, asking(lanes=lanes, report=fork))

    assert outcome.ok
    assert once.locked()
    assert contents(target) == contents(source)
    assert sorted(set(inherited) - set(before)) == []


def test_closing_a_server_in_a_forked_child_does_nothing_to_it() -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.offered()
        with forked(server.close) as ready:
            assert os.read(ready, 100) == b"null"
            target = zoo(2)
            assert fill(target, [server.endpoint], IDENTITY, asking()).ok
            assert contents(target) == contents(zoo(1))


def test_a_forked_child_may_serve_and_fill_by_itself() -> None:
    def be_both() -> bool:
        with serving(zoo(3)) as own:
            target = zoo(4)
            filled = fill(target, [own.endpoint], IDENTITY, asking()).ok
            return filled and contents(target) == contents(zoo(3))

    with serving(zoo(1)) as server, forked(be_both) as ready:
        assert json.loads(os.read(ready, 100)) is True
        assert fill(zoo(2), [server.endpoint], IDENTITY, asking()).ok
