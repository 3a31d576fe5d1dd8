"""Checks with the other end in a process of its own, which is killed in the middle.

The real driver and protocol are between the two. The process is this file, run as a module.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from netloader.config import Deadlines
from netloader.io.client import fill
from netloader.io.options import ClientOptions
from netloader.io.publishing import ServerOptions
from netloader.io.server import Server, serve
from netloader.io.transports import TRANSPORTS, Transport
from netloader.testing.conformance.calls import SOON_S, Call, Observed, must
from netloader.testing.conformance.ends import Subject, uncounted
from netloader.testing.conformance.resources import check_nothing_more, holdings, shared_files
from netloader.testing.conformance.stores import MIB, contents, medium

IDENTITY = {"model": "check"}
CODE = "from netloader.testing.conformance.process_checks import main; main()"
WORDS = 3
"""The descriptor on which the process answers: libraries print on its standard output."""
READY_S = 60.0
"""How long a process may take to import torch and the transport."""


def imported(where: str) -> Transport:
    """The transport at "module:attribute".

    Raises:
        ValueError: `where` is not of that form.
        TypeError: there is no transport.
    """
    module, _, attribute = where.partition(":")
    if not (module and attribute):
        raise ValueError(f"{where!r} is not 'module:attribute'")
    found = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(found, Transport):
        raise TypeError(f"{where} is no transport")
    return found


def deadlines(stall_s: float) -> Deadlines:
    """Those of the checks: short where the transport has to keep one."""
    return Deadlines(handshake_s=SOON_S, validate_s=SOON_S, stall_s=stall_s, queue_s=SOON_S)


def serving(subject: Subject) -> Server:
    """A server of the transport alone."""
    options = ServerOptions(
        transports=(subject.transport.name,),
        segment_bytes=MIB,
        deadlines=deadlines(subject.stall_s),
    )
    return serve(medium(1).to(subject.device), IDENTITY, "127.0.0.1", options=options)


@dataclass(frozen=True, slots=True)
class Peer:
    """The other process, and the lines that it prints."""

    child: "subprocess.Popen[str]"

    def hear(self, timeout_s: float = READY_S) -> str:
        """Its next line.

        Raises:
            Observed: it said nothing in time, or ended.
        """
        said: list[str] = []
        out = self.child.stdout
        listening = threading.Thread(
            target=lambda: said.append(out.readline() if out else ""), daemon=True
        )
        listening.start()
        listening.join(timeout_s)
        word = said[0].strip() if said else ""
        if not word:
            raise Observed(f"the other process said nothing within {timeout_s:g} s, or ended")
        return word

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait until it is gone."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(SOON_S)


@contextlib.contextmanager
def peer(subject: Subject, act: str, endpoint: str = "") -> Iterator[Peer]:
    """The other process, which is gone at the end."""
    given = {
        "path": sys.path,
        "where": subject.where,
        "device": str(subject.device),
        "stall_s": subject.stall_s,
        "act": act,
        "endpoint": endpoint,
    }
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']\n" + CODE,
            json.dumps(given),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            yield Peer(child)
        finally:
            child.kill()


def _hold(done: int, total: int) -> None:
    """Report that half has arrived, and wait for a line before going on."""
    if done >= total / 2:
        _say("half")
        sys.stdin.readline()


def _say(word: str) -> None:
    os.write(WORDS, word.encode() + b"\n")


def main() -> None:
    """Be the other process: fill from a server (`fill`, `hold`), or serve (`serve`)."""
    os.dup2(sys.stdout.fileno(), WORDS)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    given = json.loads(sys.argv[1])
    transport = imported(given["where"])
    subject = Subject(
        transport, torch.device(given["device"]), given["where"], float(given["stall_s"])
    )
    with TRANSPORTS.registered(transport):
        if given["act"] == "serve":
            with serving(subject) as server:
                _say(str(server.endpoint))
                sys.stdin.readline()
            return
        report = _hold if given["act"] == "hold" else uncounted
        target = medium(2).to(subject.device)
        options = ClientOptions(
            transports=(transport.name,), deadlines=deadlines(subject.stall_s), report=report
        )
        outcome = fill(target, given["endpoint"], IDENTITY, options)
        right = outcome.ok and contents(target) == contents(medium(1))
        _say("right" if right else f"wrong: {outcome.attempts}")
    os._exit(0)  # without the exit handlers of libraries


def fills_another_process(subject: Subject) -> None:
    """A client in another process is filled."""
    with TRANSPORTS.registered(subject.transport), serving(subject) as server:
        with peer(subject, "fill", str(server.endpoint)) as other:
            word = other.hear()
        must(word == "right", f"the client says: {word}")


def client_killed(subject: Subject) -> None:
    """When a client is killed in the middle, the server frees its place and serves the next."""
    fills_another_process(subject)  # what libraries make once, and keep
    before, files = holdings(), shared_files()
    with TRANSPORTS.registered(subject.transport):
        server = serving(subject)
        with peer(subject, "hold", str(server.endpoint)) as other:
            must(other.hear() == "half", "the client was not half filled")
            other.kill()
        with peer(subject, "fill", str(server.endpoint)) as other:
            word = other.hear()
        closing = Call("Server.close", server.close)
        thread = threading.Thread(target=closing.make, daemon=True)
        thread.start()
        closing.result(subject.stall_s + SOON_S)
        thread.join(SOON_S)
        must(word == "right", f"the client after the one that was killed says: {word}")
    check_nothing_more(before, files)


def server_killed(subject: Subject) -> None:
    """A client whose server is killed in the middle fails within the deadline."""
    before, files = holdings(), shared_files()
    with TRANSPORTS.registered(subject.transport), peer(subject, "serve") as other:
        endpoint, target = other.hear(), medium(2).to(subject.device)
        killed = threading.Event()

        def report(done: int, total: int) -> None:
            if done >= total / 2 and not killed.is_set():
                killed.set()
                other.kill()

        options = ClientOptions(
            transports=(subject.transport.name,),
            deadlines=Deadlines(
                handshake_s=SOON_S, validate_s=SOON_S, stall_s=subject.stall_s, queue_s=0.0
            ),
            report=report,
        )
        filling = Call("fill", lambda: fill(target, endpoint, IDENTITY, options))
        thread = threading.Thread(target=filling.make, daemon=True)
        thread.start()
        outcome = filling.result(READY_S)
        thread.join(SOON_S)
        must(killed.is_set(), f"nothing came before the server was to be killed: {outcome}")
        must(not outcome.ok or contents(target) == contents(medium(1)), "other bytes arrived")
    check_nothing_more(before, files)


PROCESS_CHECKS = {
    "another-process": fills_another_process,
    "client-killed": client_killed,
    "server-killed": server_killed,
}
