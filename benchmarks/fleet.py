"""Fleets of up to 1,000 instances that start together, simulated: `python -m benchmarks.fleet`.

It prints the curves of the report, and the simulation of what `fan_out` measures. The parts run in
as many processes as there are cores.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Final

from benchmarks.fan_out import COUNTS, MBIT, MIB
from benchmarks.figures import Simulated
from benchmarks.simulation import Setting, simulate

PER_RACK: Final = 32
RATE: Final = 1.25e9
OVERSUBSCRIBED: Final = 4
"""The hosts of a rack can send so many times what its uplink carries."""
REPORTED: Final = 512
"""Instances up to which `make bench` simulates: 256 take half a minute of one core, and the dials
of instances that start at once, each from one busy source to the next, grow with the square."""
CHAIN: Final = Setting(1, rate=RATE)
RACKS: Final = replace(
    CHAIN, rack=PER_RACK, uplink=RATE * PER_RACK / OVERSUBSCRIBED, quantum_s=0.002
)
WAYS: Final = {
    "star": (replace(CHAIN, relay=False, places=1 << 20, segments=16), (1, 8, 64)),
    "relay, one place each": (CHAIN, (1, 8, 64, 256, 512, 1000)),
    "relay, two places each": (replace(CHAIN, places=2), (1, 8, 64, 256)),
    "relay, racks with 1:4 uplinks, started rack by rack": (
        replace(RACKS, mixed=False),
        (1, 8, 64, 256),
    ),
    "relay, racks with 1:4 uplinks, started in any order": (RACKS, (1, 8, 64, 256)),
}
"""What is simulated: 256 segments of 16 MiB (4 GiB) at 10 Gbit/s, unless it is said otherwise."""
MEASURED: Final = Setting(
    1,
    segments=MIB,
    segment_bytes=1 << 20,
    rate=MBIT * 1e6 / 8 * 0.95,  # headers of TCP, IP and Ethernet
    message_s=0.001,
    queue_s=0.005,
)
"""As `fan_out` has it: a message waits in the queue of its host's limiter, behind data. Both times
were chosen so that eight clients in the simulation take as long as eight measured ones; with them
the report shows how far the other counts are apart."""


def curves(say: Callable[[str], None], most: int = REPORTED) -> list[Simulated]:
    """Every way, with up to `most` instances."""
    jobs = [
        (way, replace(setting, instances=count))
        for way, (setting, counts) in WAYS.items()
        for count in counts
        if count <= most
    ]
    return _all(jobs, say)


def as_measured(say: Callable[[str], None]) -> list[Simulated]:
    """What `fan_out` measures."""
    star = replace(MEASURED, relay=False, places=max(COUNTS))
    shapes = {"star": star, "relay": MEASURED}
    jobs = [
        (shape, replace(setting, instances=count))
        for shape, setting in shapes.items()
        for count in COUNTS
    ]
    return _all(jobs, say)


def _all(jobs: Sequence[tuple[str, Setting]], say: Callable[[str], None]) -> list[Simulated]:
    found: list[Simulated] = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        alone: dict[str, float] = {}
        ordered = sorted(jobs, key=lambda job: -job[1].instances)  # the longest first
        running = [(way, setting, pool.submit(_timed, setting)) for way, setting in ordered]
        for way, setting, job in reversed(running):
            seconds, sent, took = job.result()
            one = alone.setdefault(way, seconds)
            say(f"simulated {way}, {setting.instances}: {took:.1f} s")
            found.append(Simulated(setting.instances, way, seconds / one, sent, took))
    order = list(dict.fromkeys(way for way, _ in jobs))
    return sorted(found, key=lambda row: (order.index(row.way), row.clients))


def _timed(setting: Setting) -> tuple[float, float, float]:
    began = time.perf_counter()
    outcome = simulate(setting)
    return outcome.all_done, outcome.sent_by_source, time.perf_counter() - began


def main() -> int:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description="Fleets that start together, simulated.")
    parser.add_argument("--most", type=int, default=1000, help="instances")
    most: int = parser.parse_args().most

    def say(what: str) -> None:
        print(f"==> {what}", file=sys.stderr, flush=True)

    for row in (*as_measured(say), *curves(say, most)):
        print(
            f"{row.clients:>6} {row.way:<56} x {row.times_one:6.2f} of one, "
            f"{row.sent_by_source:6.2f} models sent by the source, simulated in {row.took_s:.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
