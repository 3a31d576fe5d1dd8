"""Throughput over loopback, netloader beside the bare means it uses: `make bench-quick`.

One GiB in 226 tensors goes from one process to another in several ways, taken in turns so that
whatever else the machine does meets all of them alike; ratios are therefore taken within a turn.
netloader is timed from the call of `fill` to its return: connecting, handshake, digests and
goodbye included. The bare means are timed while bytes move.

The plain socket comes in two forms: `sendall` of the whole GiB, as one would write it, and the
fastest that was found, which sends 1 MiB a call.
"""

import argparse
import multiprocessing
import os
import platform
import socket
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch._C._distributed_c10d import TCPStore

from benchmarks.serving import HOST, TIMEOUT, Ports, bare_gloo, serve_all
from benchmarks.workload import GIB, IDENTITY, MIB, TENSORS, Llama, block, seconds, tensors_of, wipe
from netloader.io import ClientOptions, Endpoint, fill

PLAIN_RECEIVE = 256 << 10
"""Bytes per receive of the fast plain socket; from 64 KiB to 1 MiB there is little difference."""

PAIRS = (("b", "a"), ("b", "A"), ("d", "c"))
"""Which contenders are compared, by their letters."""

Rates = Mapping[str, Sequence[float]]
"""GiB/s by contender, one for each round."""


class Contest:
    """The receiving side of all contenders."""

    def __init__(self, ports: Ports, pipe: Connection, lanes: int) -> None:
        self._ports = ports
        self._pipe = pipe
        self._lanes = lanes
        self._model = Llama()
        self._memory = block()
        self._store = TCPStore(HOST, ports.store, 2, is_master=False, timeout=TIMEOUT)
        self._groups = 0
        self.contenders: Mapping[str, Callable[[], float]] = {
            "a plain, one sendall": partial(self.plain, ports.whole, MIB, 0),
            "A plain, 1 MiB calls": partial(
                self.plain, ports.stepped, PLAIN_RECEIVE, socket.MSG_WAITALL
            ),
            "b netloader tcp": partial(self.netloader, "tcp"),
            "c bare gloo": self.bare,
            "d netloader gloo": partial(self.netloader, "gloo"),
        }

    def plain(self, port: int, step: int, flags: int) -> float:
        """Seconds of one socket from connect to the last byte."""
        memory = self._memory

        def receive() -> None:
            with socket.create_connection((HOST, port)) as connection:
                done = 0
                while done < GIB:
                    done += connection.recv_into(memory[done : done + step], 0, flags)

        return seconds(receive)

    def netloader(self, transport: str) -> float:
        """Seconds from the call of `fill` to its return."""
        wipe(self._model)
        options = ClientOptions(transports=(transport,), lanes=self._lanes)
        source = Endpoint(HOST, self._ports.netloader)

        def receive() -> None:
            outcome = fill(self._model, [source], IDENTITY, options)
            assert outcome.ok, outcome.history()

        return seconds(receive)

    def bare(self) -> float:
        """Seconds of one `recv` and one `wait` per tensor; making the group is not counted."""
        wipe(self._model)
        self._groups += 1
        name = f"bare-{self._groups}"
        self._pipe.send(name)
        group = bare_gloo(self._store, 1, name)

        def receive() -> None:
            for tensor in tensors_of(self._model):
                group.recv([tensor], 0, 0).wait()

        return seconds(receive)


def run(rounds: int, lanes: int) -> Rates:
    """All contenders in turns, after one round that is not counted."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    server = context.Process(target=serve_all, args=(theirs,), daemon=True)
    server.start()
    theirs.close()
    contest = Contest(pipe.recv(), pipe, lanes)
    rates: dict[str, list[float]] = {name: [] for name in contest.contenders}
    for number in range(rounds + 1):
        for name, contender in contest.contenders.items():
            rate = 1 / contender()
            if number:
                rates[name].append(rate)
    pipe.close()
    server.join(TIMEOUT.total_seconds())
    return rates


def table(rates: Rates) -> str:
    """What was measured, for people."""
    lines = [f"{'GiB/s':<22}{'median':>8}{'min':>8}{'max':>8}   rounds"]
    lines += [_line(name, values) for name, values in rates.items()]
    by_letter = {name[0]: values for name, values in rates.items()}
    for ours, bare in PAIRS:
        pairs = [a / b for a, b in zip(by_letter[ours], by_letter[bare], strict=True)]
        lines.append(_line(f"{ours}/{bare} pair by pair", pairs))
    return "\n".join(lines)


def _line(label: str, values: Sequence[float]) -> str:
    each = " ".join(f"{value:.2f}" for value in values)
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{label:<22}{middle:>8.2f}{low:>8.2f}{high:>8.2f}   {each}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput over loopback, 1 GiB, two processes.")
    parser.add_argument("--lanes", type=int, default=ClientOptions().lanes)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    print(
        f"1 GiB in {TENSORS} tensors, {wanted.rounds} rounds after one to warm up, "
        f"{wanted.lanes} lanes (tcp), {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(table(run(wanted.rounds, wanted.lanes)))


if __name__ == "__main__":
    main()
