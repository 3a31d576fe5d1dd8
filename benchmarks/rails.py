"""What one of two links of limited rate carries, and both: `python -m benchmarks.rails`.

Two hosts are network namespaces, and each link carries 160 Mbit/s. Needs root and iproute2.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from benchmarks.figures import Rails
from netloader.config import Deadlines, Endpoint
from tests.support.hosts import Host, missing, two_cables
from tests.support.peers import Peer, Spec, act_as_client, serving

RATE: Final = "160mbit"
MIB: Final = 32
ROUNDS: Final = 3
PATIENT: Final = Deadlines(min_rate_bytes_per_s=1 << 20)


def rails(say: Callable[[str], None]) -> Rails:
    """One link and both in turns, medians.

    Raises:
        RuntimeError: this machine cannot have such hosts.
    """
    if why_not := missing():
        raise RuntimeError(why_not)
    say("two rails")
    with ExitStack() as stack:
        cables = stack.enter_context(two_cables())
        for near, _ in cables:
            near.limit(RATE)
        taken: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for count, times in taken.items():
                times.append(_seconds(cables[:count]))
    one, both = (MIB * (1 << 20) / 1e6 / statistics.median(taken[count]) for count in (1, 2))
    return Rails(one, both)


def _seconds(cables: Sequence[tuple[Host, Host]]) -> float:
    """How long a transfer over some links takes."""
    near, far = ([each.address for each in ends] for ends in zip(*cables, strict=True))
    spec = Spec(network=cables[0][0].network, mib=MIB, deadlines=PATIENT, lanes=2)
    server, words = serving(replace(spec, host="0.0.0.0", rails=tuple(near)))
    with server:
        source = str(Endpoint(near[0], Endpoint.parse(words["endpoint"]).port))
        network = cables[0][1].network
        client = replace(spec, network=network, sources=(source,), rails=tuple(far))
        with Peer(act_as_client, client) as peer:
            outcome = peer.hear()
    if not outcome["ok"]:
        raise RuntimeError(str(outcome["attempts"]))
    spent: float = outcome["attempts"][0]["seconds"]["transfer"]
    return spent


def main() -> None:
    """Measure and print."""
    found = rails(print)
    print(f"one {found.one:.1f} MB/s, both {found.both:.1f} MB/s: {found.both / found.one / 2:.2f}")


if __name__ == "__main__":
    main()
