"""A server beside a busy loop, which stands for an engine's inference thread.

How long the listener holds the loop up is measured in CPU time of the listener's own thread: what
that thread used between two iterations of the loop. While the loop runs, it holds the interpreter
lock, so this is how long the listener kept the lock at a stretch, to within the microseconds that
it spends in system calls. Wall-clock time between two iterations says less on a shared machine,
because any other process counts in it; it is reported beside.
"""

import threading
import time
from collections.abc import Callable

from netloader.io import ServerOptions, serve
from tests.support.peers import IDENTITY, MIB, Line, Spec, Watch, Words, build, orders

LISTENER = "netloader-listener"
LOOK_S = 0.05
"""How often the busy loop looks for an order."""


def act_as_engine(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Serve; be busy from one order to the next, and then say how that went."""
    module = build(spec.seed, spec)
    options = ServerOptions(
        segment_bytes=spec.segment_mib * MIB,
        deadlines=spec.deadlines,
        max_clients=spec.max_clients,
    )
    server = serve(module, IDENTITY, options=options)
    (listener,) = (t for t in threading.enumerate() if t.name == LISTENER)
    assert listener.ident is not None
    clock = time.pthread_getcpuclockid(listener.ident)
    say(endpoint=str(server.endpoint))
    for _ in orders(line):
        say(busy=True)
        worst = busy(line, clock)
        line.recv()
        say(errors=watch.errors, reasons=dict(watch.reasons), **worst)


def busy(line: Line, clock: int) -> Words:
    """Iterate until the next order; the worst there was between two iterations, in milliseconds."""
    worst_wall = worst_listener = 0.0
    turns = 0
    wall, listener = time.perf_counter(), time.clock_gettime(clock)
    first, look = listener, wall
    while True:
        turns += 1
        if wall > look:
            if line.poll():
                break
            look = wall + LOOK_S
        before, wall = wall, time.perf_counter()
        worst_wall = max(worst_wall, wall - before)
        before, listener = listener, time.clock_gettime(clock)
        worst_listener = max(worst_listener, listener - before)
    return {
        "turns": turns,
        "wall_ms": round(worst_wall * 1e3, 1),
        "listener_ms": round(worst_listener * 1e3, 1),
        "listener_total_ms": round((listener - first) * 1e3),
    }
