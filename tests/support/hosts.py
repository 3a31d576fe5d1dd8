"""Hosts on one machine: two network namespaces with a cable, or several at one switch."""

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from netloader.io.clock import monotonic

CLONE_NEWNET: Final = 0x40000000
NARROW: Final = ("tbf", "rate", "160mbit", "burst", "32kb", "limit", "96kb")
"""A queue of 5 ms that overflows when a sender is too fast: delay, and loss as routers cause it."""
QUEUE: Final = ("burst", "128kb", "limit", "1mb")
"""Of a host whose rate is limited: room for what a sender has in flight."""
LOSSY: Final = ("netem", "delay", "5ms", "2ms", "loss", "1%", "rate", "160mbit")
NETWORKS: Final = Path("/run/netns")
PREFIX: Final = "netloader"
LINK_S: Final = 20.0

_numbers = itertools.count()


def ip(*words: str, tool: str = "ip") -> str:
    """Run `ip` or `tc`; its output.

    Raises:
        OSError: it failed, with what it said.
    """
    done = subprocess.run([tool, *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{tool} {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def enter(network: str) -> None:
    """Move this process, which has one thread, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(NETWORKS / network, os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(descriptor)


def missing() -> str:
    """Why this machine cannot have two hosts, or ''."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"needs the program `{tool}` (Debian, Ubuntu: apt install iproute2)"
    if os.geteuid():
        return "needs root, or: unshare --user --map-root-user --mount, and a tmpfs on /run"
    try:
        with two_hosts():
            return ""
    except (OSError, AssertionError) as error:
        return f"no network namespaces here: {error}"


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace, its end of the cable and its address."""

    network: str
    device: str
    address: str

    def ip(self, *words: str) -> str:
        """Run `ip` in this host."""
        return ip("-n", self.network, *words)

    def _tc(self, *words: str) -> str:
        return ip("-n", self.network, *words, tool="tc")

    def unplug(self) -> None:
        """Pull the cable: no FIN and no RST will tell anybody."""
        self.ip("link", "set", self.device, "down")

    def plug(self) -> None:
        """Put the cable back."""
        self.ip("link", "set", self.device, "up")

    def wait_for_link(self) -> None:
        """Wait until the kernel has seen that the cable is in, which may take it a second."""
        pause = threading.Event()
        end = monotonic() + LINK_S
        while '"operstate":"UP"' not in self.ip("-j", "link", "show", "dev", self.device):
            assert monotonic() < end, f"no link after {LINK_S} s"
            pause.wait(0.01)
        self.ip("neighbor", "flush", "dev", self.device)

    def impair(self) -> str:
        """Delay and lose packets on the way out; how that is done."""
        for words in (LOSSY, NARROW):
            with contextlib.suppress(OSError):
                self._tc("qdisc", "replace", "dev", self.device, "root", *words)
                return words[0]
        pytest.skip("the kernel has neither netem nor tbf")

    def limit(self, rate: str) -> None:
        """Let no more than a rate (such as "320mbit") out of this host; skip where tc cannot."""
        try:
            self._tc("qdisc", "replace", "dev", self.device, "root", "tbf", "rate", rate, *QUEUE)
        except OSError as error:
            pytest.skip(f"the kernel limits no rates: {error}")

    def sent(self) -> int:
        """Bytes that left this end of the cable."""
        shown: list[dict[str, Any]] = json.loads(
            self.ip("-s", "-j", "link", "show", "dev", self.device)
        )
        return int(shown[0]["stats64"]["tx"]["bytes"])

    def lost(self) -> int:
        """Packets lost on the way out since `impair`."""
        shown: list[dict[str, Any]] = json.loads(
            self._tc("-s", "-j", "qdisc", "show", "dev", self.device)
        )
        return sum(int(queue["drops"]) for queue in shown)

    def answers_only_on(self, port: int) -> None:
        """Let nothing leave but answers from one TCP port: a firewall made of routes."""
        self.ip("rule", "add", "pref", "1", "ipproto", "tcp", "sport", str(port), "lookup", "main")
        self.ip("rule", "add", "pref", "2", "to", "10.77.0.0/24", "blackhole")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them; nothing of them is left afterwards."""
    _sweep()
    word = f"{PREFIX}{os.getpid()}x{next(_numbers)}"
    hosts = tuple(Host(f"{word}{side}", f"cable{side}", f"10.77.0.{side}") for side in (1, 2))
    with contextlib.ExitStack() as undo:
        for host in hosts:
            undo.callback(_remove, host.network)
            ip("netns", "add", host.network)
        one, two = hosts
        one.ip("link", "add", one.device, "type", "veth", "peer", two.device, "netns", two.network)
        for host in hosts:
            host.ip("address", "add", f"{host.address}/24", "dev", host.device)
            host.ip("link", "set", "lo", "up")
            host.plug()
        for host in hosts:
            host.wait_for_link()
        yield one, two


@contextlib.contextmanager
def two_cables() -> Iterator[tuple[tuple[Host, Host], tuple[Host, Host]]]:
    """Two hosts with two cables between them: for each cable, both of its ends."""
    with two_hosts() as (one, two):
        ends = tuple(
            Host(host.network, f"rail{side}", f"10.78.0.{side}")
            for side, host in enumerate((one, two), 1)
        )
        near, far = ends
        near.ip(
            "link", "add", near.device, "type", "veth", "peer", far.device, "netns", far.network
        )
        for end in ends:
            end.ip("address", "add", f"{end.address}/24", "dev", end.device)
            end.plug()
        for end in ends:
            end.wait_for_link()
        yield (one, two), (near, far)


@contextlib.contextmanager
def arms(count: int) -> Iterator[tuple[str, tuple[Host, ...]]]:
    """The network of one host, and other hosts with a cable to it each."""
    _sweep()
    word = f"{PREFIX}{os.getpid()}x{next(_numbers)}"
    with contextlib.ExitStack() as undo:
        numbers = range(1, count + 1)
        middle = [Host(f"{word}m", f"arm{i}", f"10.77.{i}.1") for i in numbers]
        others = [Host(f"{word}a{i}", f"cable{i}", f"10.77.{i}.2") for i in numbers]
        for network in dict.fromkeys(host.network for host in (*middle, *others)):
            undo.callback(_remove, network)
            ip("netns", "add", network)
        for near, far in zip(middle, others, strict=True):
            ends = (near.device, "type", "veth", "peer", far.device, "netns", far.network)
            near.ip("link", "add", *ends)
        for host in (*middle, *others):
            host.ip("address", "add", f"{host.address}/24", "dev", host.device)
            host.ip("link", "set", "lo", "up")
            host.plug()
        for host in (*middle, *others):
            host.wait_for_link()
        yield f"{word}m", tuple(others)


@contextlib.contextmanager
def hosts_at_a_switch(count: int, mbit: int) -> Iterator[tuple[Host, ...]]:
    """Hosts that each send `mbit` Mbit/s at most, whomever to; nothing is left of them."""
    _sweep()
    word = f"{PREFIX}{os.getpid()}x{next(_numbers)}"
    switch = f"{word}s"
    limit = ("tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms")
    sides = range(1, count + 1)
    hosts = tuple(Host(f"{word}h{n}", f"cable{n}", f"10.77.0.{n}") for n in sides)
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, switch)
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for n, host in enumerate(hosts):
            undo.callback(_remove, host.network)
            ip("netns", "add", host.network)
            end = ("peer", f"port{n}", "netns", switch)
            host.ip("link", "add", host.device, "type", "veth", *end)
            ip("-n", switch, "link", "set", f"port{n}", "master", "switch", "up")
            host.ip("address", "add", f"{host.address}/24", "dev", host.device)
            host.ip("link", "set", "lo", "up")
            host.plug()
            words = ("qdisc", "replace", "dev", host.device, "root", *limit)
            ip("-n", host.network, *words, tool="tc")
        for host in hosts:
            host.wait_for_link()
        yield hosts


def _sweep() -> None:
    """Remove what test processes left that were killed."""
    for path in NETWORKS.glob(f"{PREFIX}*x*"):
        owner = path.name.removeprefix(PREFIX).partition("x")[0]
        if not Path(f"/proc/{owner}").exists():
            _remove(path.name)


def _remove(network: str) -> None:
    if (NETWORKS / network).exists():
        ip("netns", "delete", network)
