"""Clients that start together from one server of limited rate: `python -m benchmarks.fan_out`.

Each is a process on a host (network namespace) of its own that sends 160 Mbit/s at most; the model
has 64 MiB. Star: all from the server, which has places for all. Relay: the server, and each client,
has one place, so clients feed each other. Needs root and iproute2.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from benchmarks.figures import FanOut
from tests.support.fan_out import act_alone, act_as_relay, fan_out
from tests.support.hosts import missing

MIB: Final = 64
MBIT: Final = 160
STALL_S: Final = 60.0
"""Sixteen flows over one narrow link: one may have nothing for a while."""
COUNTS: Final = (1, 2, 4, 8, 16)


def measured(say: Callable[[str], None]) -> tuple[list[FanOut], dict[str, str]]:
    """Both shapes, with every count; also what could not be measured, and why.

    Raises:
        RuntimeError: this machine cannot have such hosts.
    """
    if why_not := missing():
        raise RuntimeError(why_not)
    found, failed = list[FanOut](), dict[str, str]()
    for count in COUNTS:
        for shape in ("star", "relay"):
            say(f"fan-out, {shape}, {count} clients")
            try:
                found.append(_once(shape, count))
            except AssertionError as error:  # a client that did not get through
                failed[f"{shape}, {count} clients"] = str(error)[:300]
    return found, failed


def _once(shape: str, count: int) -> FanOut:
    if shape == "star":
        figures, ended = fan_out(act_alone, count, MIB, MBIT, max_clients=count, stall_s=STALL_S)
    else:
        figures, ended = fan_out(act_as_relay, count, MIB, MBIT, max_clients=1, stall_s=STALL_S)
    sent = _sent(ended)
    by_source = figures.sent_by_server
    by_clients = sorted(models for models in sent.values())
    by_clients.remove(by_source)
    return FanOut(
        clients=count,
        shape=shape,
        seconds=figures.all_done,
        sent_by_source=by_source,
        most_sent_by_a_client=max(by_clients, default=0.0),
        mean_per_link=sum(sent.values()) / len(sent),
    )


def _sent(ended: list[dict[str, Any]]) -> dict[str, float]:
    """Models that each source sent."""
    sent: Counter[str] = Counter()
    for end in ended:
        for attempt in end["attempts"]:
            sent[attempt["source"]] += attempt["nbytes"]
    return {source: nbytes / ended[0]["nbytes"] for source, nbytes in sent.items() if nbytes}


def main() -> int:
    """Measure, and print a line for each."""
    rows, failed = measured(lambda what: print(f"==> {what}", flush=True))
    for row in rows:
        print(row)
    for name, why in failed.items():
        print(f"{name}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
