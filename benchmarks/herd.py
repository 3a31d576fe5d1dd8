"""Clients that start at once and know only a registry and one seed: `python benchmarks/herd.py`.

All are threads of one process; each serves what it receives, and publishes itself. The seed has two
places. Needs redis-server.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from netloader.config import Deadlines
from netloader.discovery.announce import Announcement
from netloader.discovery.base import Candidate, Key
from netloader.discovery.lookup import Lookup
from netloader.discovery.urls import registry_of
from netloader.fsm.published_events import ModelState
from netloader.io import ClientOptions, Server, ServerOptions, fill, listen, serve
from netloader.io.clock import monotonic
from netloader.log import get_logger
from tests.support.registries import redis_server

COUNT = 50
PLACES = 2
TENSORS, BYTES = 16, 1 << 20
IDENTITY = {"model": "herd"}
KEY = Key("herd", "0")
READY_S = 60.0
LONG = Deadlines(
    connect_s=30, handshake_s=120, validate_s=120, stall_s=120, transfer_base_s=300, queue_s=300
)
OPTIONS = ServerOptions(transports=("tcp",), max_clients=PLACES, deadlines=LONG)


def weights(value: int) -> dict[str, torch.Tensor]:
    """A state dict of 16 MiB."""
    return {f"w{i}": torch.full((BYTES,), value + i, dtype=torch.uint8) for i in range(TENSORS)}


def offered(server: Server) -> Candidate | None:
    """What a registry is told of a server now."""
    for model in server.snapshot().models:
        if model.state in (ModelState.OFFERED, ModelState.RECEIVING):
            return Candidate(server.endpoint, load=model.clients / PLACES)
    return None


def start(url: str, number: int) -> tuple[float, bool, Server, Announcement]:
    """One client: seconds until it has its weights, and whether they are right."""
    del number
    begun = monotonic()
    logger = get_logger("herd")
    server = listen("127.0.0.1", 0, OPTIONS)
    lookup = Lookup([registry_of(url)], KEY, "", READY_S, logger, own=lambda: [server.endpoint])
    sources = lookup.look().sources
    announcement = Announcement(registry_of(url), KEY, partial(offered, server), logger)
    mine, right = weights(100), weights(1)
    options = ClientOptions(transports=("tcp",), lanes=1, deadlines=LONG, relay=server, feed=lookup)
    outcome = fill(mine, sources, IDENTITY, options)
    took = monotonic() - begun
    good = outcome.ok and all(torch.equal(mine[name], right[name]) for name in right)
    return took, good, server, announcement


def main() -> int:
    """Measure, and print what the seed did."""
    with redis_server() as (where, _):
        url = f"redis://{where}/herd"
        with serve(weights(1), IDENTITY, "127.0.0.1", options=OPTIONS) as seed:
            seed.wait_ready(READY_S)
            registry_of(url).put(KEY, Candidate(seed.endpoint), 3600, READY_S)
            with ThreadPoolExecutor(COUNT) as threads:
                ends = list(threads.map(partial(start, url), range(COUNT)))
            (model,) = seed.snapshot().models
            seconds = sorted(took for took, _, _, _ in ends)
            print(
                f"{COUNT} starts at once: {sum(good for _, good, _, _ in ends)} right; first "
                f"{seconds[0]:.1f} s, median {seconds[COUNT // 2]:.1f} s, last {seconds[-1]:.1f} s"
            )
            copies = model.sent_bytes / model.nbytes
            print(f"the seed served {model.sessions} sessions and sent {copies:.1f} copies")
            for _, _, server, announcement in ends:
                announcement.end_soon()
                server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
