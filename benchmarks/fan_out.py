"""Clients that start together from one server of limited rate: `python benchmarks/fan_out.py`.

Each is a process on a host (network namespace) of its own that sends 160 Mbit/s at most; the model
has 64 MiB. Star: all from the server, which has places for all. Relay: the server, and each client,
has one place, so clients feed each other. Needs root and iproute2.
"""

import sys

from tests.support.fan_out import act_alone, act_as_relay, fan_out
from tests.support.hosts import missing

MIB = 64
MBIT = 160
COUNTS = (1, 2, 4, 8)


def main() -> int:
    """Measure, and print a table."""
    if why_not := missing():
        print(f"hosts: {why_not}")
        return 1
    print(
        f"{MIB} MiB, {MBIT} Mbit/s a host; seconds until all are done (models sent by the server)"
    )
    print(f"{'clients':>8} {'star':>14} {'relay':>14}")
    for count in COUNTS:
        star, _ = fan_out(act_alone, count, MIB, MBIT, max_clients=count)
        relay, _ = fan_out(act_as_relay, count, MIB, MBIT, max_clients=1)
        shown = [f"{f.all_done:.2f} ({f.sent_by_server:.2f})" for f in (star, relay)]
        print(f"{count:>8} {shown[0]:>14} {shown[1]:>14}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
