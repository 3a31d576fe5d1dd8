"""Hostile connections while a transfer runs: `python -m benchmarks.hostile`.

A server in one process sends the same weights again and again to a client in another; attackers in
further ones open connections at a rate that is raised until the transfer is below KEPT of what it
was just before. Every attacker is bounded: it ends after its time, and none of its calls waits.
The rate of the transfer is capped, as a network would, so that the cores are not what limits it
before anybody attacks.
"""

import argparse
import logging
import multiprocessing
import os
import secrets
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.workload import MIB
from netloader import ClientOptions, Deadlines, Endpoint, ServerOptions, fill, serve
from netloader.config import Secret
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Hello, Purpose, Start
from netloader.secure.tls import Tls
from netloader.wire.frames import encode

HOST, ATTACKER = "127.0.0.1", "127.0.0.2"
"""The client and its attackers have addresses of their own."""
KEPT: Final = 0.9
STEPS: Final = (100, 400, 1600, 6400)
"""Connections a second."""
WINDOW_S: Final = 2.0
COST_PER_S: Final = 800
"""Connections a second for which their cost is measured."""
MOST_OPEN: Final = 200
"""Connections that one attacker keeps, where it closes none."""
TENSORS, NBYTES = 64, 64 * MIB
IDENTITY: Final = {"model": "hostile"}
START: Final = encode(Start((2,), "0" * 32))
WRONG: Final = encode(Hello((2,), Purpose.WEIGHTS, Identity(IDENTITY), mac="0" * 64))

Attack = Callable[[socket.socket], bool]
"""What is done with a connection; whether it is kept open."""


def _noise(sock: socket.socket) -> bool:
    sock.send(secrets.token_bytes(512))
    return False


def _half_open(sock: socket.socket) -> bool:
    sock.send(START[:7])
    return True


def _nothing(sock: socket.socket) -> bool:
    del sock
    return False


def _wrong_token(sock: socket.socket) -> bool:
    sock.send(START + WRONG)
    return False


def _tls_hello(sock: socket.socket) -> bool:
    """The first flight of a handshake, whose answer is never read."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    session = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        sock.send(outgoing.read())
    return False


ATTACKS: Final[Mapping[str, Attack]] = {
    "random bytes": _noise,
    "half a frame, kept open": _half_open,
    "connect and close": _nothing,
    "a wrong token": _wrong_token,
    "a TLS hello, and no more": _tls_hello,
}
"""A wrong token at a server with TLS is a plain frame where TLS is spoken."""


def attack(name: str, port: int, per_s: float, seconds: float) -> int:
    """Open so many connections a second for a while, in time or late; how many there were."""
    begun, count = time.monotonic(), 0
    kept: list[socket.socket] = []
    while (now := time.monotonic() - begun) < seconds:
        if count >= now * per_s:
            time.sleep(min(0.005, count / per_s - now))
            continue
        count += 1
        sock = socket.socket()
        sock.settimeout(0.2)
        try:
            sock.bind((ATTACKER, 0))
            sock.connect((HOST, port))
            keep = ATTACKS[name](sock)
        except OSError:
            keep = False
        if keep and len(kept) < MOST_OPEN:
            kept.append(sock)
        else:
            sock.close()
    for sock in kept:
        sock.close()
    return count


def _attacker(name: str, port: int, per_s: float, seconds: float, told: Connection) -> None:
    told.send(attack(name, port, per_s, seconds))


@dataclass(frozen=True, slots=True)
class Safety:
    """The token and, where the connections have TLS, the files of both sides."""

    token: Secret
    files: tuple[Path, Path, Path] | None

    @property
    def both(self) -> dict[str, Any]:
        """For the options of either side."""
        return {"token": self.token, "tls": self.files and Tls(*self.files)}


def _weights() -> dict[str, torch.Tensor]:
    return {f"w{n}": torch.ones(NBYTES // TENSORS, dtype=torch.uint8) for n in range(TENSORS)}


def _server(safety: Safety, cap: str, told: Connection) -> None:
    """Serve until the process is ended; answer every question with the CPU seconds so far.

    The log is formatted and thrown away, as one that goes to a file costs no more.
    """
    logging.getLogger("netloader").addHandler(logging.FileHandler(os.devnull))
    options = ServerOptions(transports=("tcp",), max_bandwidth=cap, max_clients=1, **safety.both)
    with serve(_weights(), IDENTITY, HOST, 0, options) as server:
        server.wait_ready(60.0)
        told.send(server.endpoint.port)
        while told.recv():
            told.send(time.process_time())


def _client(safety: Safety, port: int, told: Connection) -> None:
    """Receive for as many seconds as asked; answer with bytes a second."""
    options = ClientOptions(transports=("tcp",), deadlines=Deadlines(), **safety.both)
    weights = _weights()
    while seconds := told.recv():
        begun, count = time.monotonic(), 0
        while time.monotonic() - begun < seconds:
            count += fill(weights, Endpoint(HOST, port), IDENTITY, options).ok
        told.send(count * NBYTES / (time.monotonic() - begun))


@contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        ours.close()
        process.terminate()
        process.join(10)


@dataclass(frozen=True, slots=True)
class Step:
    """One rate: connections a second that were made, and the share that the transfer kept."""

    per_s: float
    share: float


def step(name: str, port: int, per_s: float, client: Connection) -> Step:
    """The transfer without and with attackers, one after the other."""
    idle = _rate(client)
    with _process(_attacker, name, port, per_s, WINDOW_S) as attacker:
        rate = _rate(client)
        count = attacker.recv()
    return Step(count / WINDOW_S, rate / idle)


def _rate(client: Connection) -> float:
    client.send(WINDOW_S)
    return float(client.recv())


def cost_us(name: str, port: int, server: Connection) -> float:
    """CPU of the server for each connection, while nothing is transferred."""
    server.send("cpu")
    before = server.recv()
    with _process(_attacker, name, port, COST_PER_S, WINDOW_S) as attacker:
        count = attacker.recv()
        server.send("cpu")
        return float((server.recv() - before) / count * 1e6)


@contextmanager
def certificates() -> Iterator[tuple[Path, Path, Path]]:
    """A certificate of this host that is its own authority."""
    with tempfile.TemporaryDirectory() as place:
        pem, key = Path(place, "host.pem"), Path(place, "host.key")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        names = ("-addext", f"subjectAltName=IP:{HOST}", "-subj", "/CN=host", "-days", "2")
        files = ("-keyout", str(key), "-out", str(pem))
        command = ["openssl", "req", "-x509", *curve, *files, *names]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        yield pem, key, pem


def withstood(steps: list[Step]) -> float:
    """The most connections a second at which the transfer kept its rate; 0: at none."""
    good = [each.per_s for each in steps if each.share >= KEPT]
    return max(good, default=0.0)


def measure(files: tuple[Path, Path, Path] | None, cap: str, names: list[str]) -> None:
    """Ramp every attack up, and write a row of a Markdown table for it."""
    safety = Safety(Secret(secrets.token_hex(16)), files)
    with _process(_server, safety, cap) as server:
        port = server.recv()
        with _process(_client, safety, port) as client:
            _rate(client)
            for name in names:
                steps: list[Step] = []
                for per_s in STEPS:
                    steps.append(step(name, port, per_s, client))
                    if steps[-1].share < KEPT - 0.1 or steps[-1].per_s < per_s / 2:
                        break
                cpu = cost_us(name, port, server)
                tls = "yes" if files else "no"
                shares = ", ".join(f"{each.per_s:.0f}: {each.share:.2f}" for each in steps)
                row = (tls, name, f"{withstood(steps):.0f}", f"{cpu:.0f}", shares)
                print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Measure what the command line says, and write a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cap", default="400MB/s", help="rate of the transfer, as MAX_BANDWIDTH")
    parser.add_argument("--only", nargs="*", default=[*ATTACKS], choices=[*ATTACKS])
    parser.add_argument("--tls", choices=("yes", "no", "both"), default="both")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, {WINDOW_S:g} s a step, the transfer is capped at {given.cap}")
    print("| TLS | attack | a second, at most | CPU of the server, µs each | tried: share kept |")
    print("| --- | --- | --- | --- | --- |")
    if given.tls != "yes":
        measure(None, given.cap, given.only)
    if given.tls != "no":
        with certificates() as files:
            measure(files, given.cap, given.only)


if __name__ == "__main__":
    main()
