"""Real registries and name servers, for the time of a test; skipped where one is not installed."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import dns.resolver
import pytest

from netloader.config import Endpoint
from netloader.io.clock import monotonic
from tests.support.ports import free_port

Program: TypeAlias = "subprocess.Popen[bytes]"
START_S = 60.0
"""How long a server may take to accept connections: a shared machine may be busy."""
STOP_S = 30.0


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[Program]:
    """A server program, once it accepts connections."""
    path = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        pytest.skip(f"{command[0]} is not installed")
    process = subprocess.Popen(
        [path, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(process, port)
        yield process
    finally:
        process.kill()
        process.wait(STOP_S)


def _wait(process: Program, port: int) -> None:
    end = monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        assert process.poll() is None, "it ended at once"
        assert monotonic() < end, "it accepts no connection"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)


@contextlib.contextmanager
def name_server(folder: Path, services: Mapping[str, int]) -> Iterator[Path]:
    """A DNS server, which resolves all names of this process inside the block.

    `services` are names of hosts with ports, the targets of the SRV record `_netloader._tcp.test`.
    Gives the file of the hosts, in the format of /etc/hosts. Names end with `.test`.
    """
    port, hosts = free_port(), folder / "hosts"
    hosts.touch()
    records = [
        f"--srv-host=_netloader._tcp.test,{host},{port},{priority}"
        for priority, (host, port) in enumerate(services.items())
    ]
    command = [
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"),
        *(f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--local=/test/"),
        *(f"--hostsdir={hosts.parent}", "--pid-file", "--user=root", *records),
    ]
    with running(command, port):
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], port
        resolver.lifetime = START_S
        default = dns.resolver.default_resolver
        dns.resolver.default_resolver = resolver
        dns.resolver.override_system_resolver(resolver)
        try:
            yield hosts
        finally:
            dns.resolver.restore_system_resolver()
            dns.resolver.default_resolver = default


@contextlib.contextmanager
def redis_server(*options: str, port: int = 0) -> Iterator[tuple[Endpoint, Program]]:
    """A Redis server without a file, and its process."""
    port = port or free_port()
    bound = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    with running(("redis-server", "--port", str(port), *bound, *options), port) as process:
        yield Endpoint("127.0.0.1", port), process


@contextlib.contextmanager
def etcd_server(folder: Path) -> Iterator[tuple[Endpoint, Program]]:
    """An etcd server of one member, and its process."""
    port, peer = free_port(), free_port()
    urls = (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}")
    command = (
        *("etcd", "--data-dir", str(folder / "etcd"), "--log-level", "error"),
        *("--listen-client-urls", urls[0], "--advertise-client-urls", urls[0]),
        *("--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1]),
        *("--initial-cluster", f"default={urls[1]}", "--unsafe-no-fsync"),
    )
    with running(command, port) as process:
        yield Endpoint("127.0.0.1", port), process


@contextlib.contextmanager
def mute() -> Iterator[Endpoint]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Endpoint(*listener.getsockname()[:2])
