"""Clients that start together from one server, each on a host of its own with a limited rate."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from netloader.config import Deadlines
from netloader.io import ClientOptions, Server, ServerOptions, fill, listen
from netloader.io.clock import monotonic
from tests.support.hosts import hosts_at_a_switch
from tests.support.peers import (
    IDENTITY,
    Line,
    Peer,
    Spec,
    Watch,
    Words,
    build,
    digest,
    orders,
    serving,
    summary,
)

DEADLINES = Deadlines(
    connect_s=5, handshake_s=10, validate_s=20, stall_s=10, transfer_base_s=60, queue_s=60
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured: seconds from the start of all until each was done, in order."""

    seconds: tuple[float, ...]
    sent_by_server: float
    """Bytes that left the first server, in models."""

    @property
    def all_done(self) -> float:
        """Seconds until the last one was done."""
        return max(self.seconds)


def act_alone(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Fill a model when told to, and serve nothing."""
    _fill_when_told(spec, line, say, watch, relay=None)


def act_as_relay(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Fill a model when told to, and serve each segment at once."""
    chosen = ServerOptions(
        transports=spec.transports, max_clients=spec.max_clients, deadlines=spec.deadlines
    )
    _fill_when_told(spec, line, say, watch, listen(spec.host, 0, chosen))


def _fill_when_told(
    spec: Spec, line: Line, say: Callable[..., None], watch: Watch, relay: Server | None
) -> None:
    options = ClientOptions(
        transports=spec.transports,
        lanes=spec.lanes,
        deadlines=spec.deadlines,
        report=lambda done, total: watch.reached("received", done / total),
        relay=relay,
    )
    module = build(0, spec)

    def work() -> None:
        outcome = fill(module, spec.sources, IDENTITY, options)
        say(at=monotonic(), digest=digest(module), **summary(outcome))

    say(ready=True)
    for order in orders(line):
        if order == "go on":
            watch.go_on.set()
        else:
            threading.Thread(target=work).start()


def fan_out(
    role: Callable[..., None],
    count: int,
    mib: int,
    mbit: int,
    max_clients: int,
    stall_s: float = DEADLINES.stall_s,
) -> tuple[Figures, list[Words]]:
    """Start `count` clients together; every one must end with the model of the server."""
    with ExitStack() as stack:
        hosts = stack.enter_context(hosts_at_a_switch(count + 1, mbit))
        deadlines = replace(DEADLINES, stall_s=stall_s)
        spec = Spec(mib=mib, segment_mib=1, deadlines=deadlines, max_clients=max_clients)
        first = replace(spec, network=hosts[0].network, host=hosts[0].address)
        server, words = serving(first)
        stack.enter_context(server)
        clients = [
            stack.enter_context(Peer(role, replace(at, sources=(words["endpoint"],))))
            for at in (replace(spec, network=h.network, host=h.address) for h in hosts[1:])
        ]
        for client in clients:
            assert client.hear()["ready"]
        began = monotonic()
        for client in clients:
            client.tell("begin")
        ended = [client.hear(180.0) for client in clients]
        for end in ended:
            assert end["ok"], end["attempts"]
            assert end["digest"] == words["digest"]
        from_server = sum(
            attempt["nbytes"]
            for end in ended
            for attempt in end["attempts"]
            if attempt["source"] == words["endpoint"]
        )
        seconds = tuple(sorted(end["at"] - began for end in ended))
        return Figures(seconds, from_server / ended[0]["nbytes"]), ended
