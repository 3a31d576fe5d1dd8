"""Actors of a Ray cluster that fill one model from each other: `python deploy/ray/fleet.py`.

The first finds nobody and reads the file. The others know only the name of the registry. One is
killed, and the next one starts from those that live. Needs torch and `vllm-netloader[ray]`.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import ray
import torch
from torch import nn

from netloader import ClientOptions, fill, serve
from netloader.discovery.announce import Announcement
from netloader.discovery.base import Candidate, Key
from netloader.discovery.urls import registry_of
from netloader.log import get_logger

REGISTRY = "ray://fleet/servers"
IDENTITY = {"model": "demo", "partition": "0 of 1"}
"""Equal on a server and a client, field by field."""
KEY = Key(model="demo", digest="0 of 1")
"""What the registry keeps them by: those with other weights have another key."""
ANSWER_S = 60.0


def build() -> nn.Module:
    """16 MiB."""
    return nn.Sequential(nn.Linear(1024, 2048), nn.GELU(), nn.Linear(2048, 1024))


@ray.remote(num_cpus=1)
class Instance:
    """One model, and its server."""

    def __init__(self, host: str, file: str) -> None:
        model, self._origin = build(), "the file"
        registry = registry_of(REGISTRY)
        found = registry.find(KEY, ANSWER_S)
        sources = [candidate.endpoint for candidate in found.candidates]
        outcome = fill(model, sources, IDENTITY, ClientOptions(timeout_s=ANSWER_S))
        if outcome.ok:
            self._origin = str(outcome.source)
        else:
            model.load_state_dict(torch.load(file, weights_only=True))
        server = serve(model, IDENTITY, host)
        server.wait_ready(ANSWER_S)
        here = Candidate(server.endpoint)
        registry.put(KEY, here, 15, ANSWER_S)
        # It renews the lease, and takes the server away at the end.
        self._announcement = Announcement(registry, KEY, lambda: here, get_logger("server"))
        self._model, self._server = model, server

    def describe(self) -> tuple[str, str, str, int]:
        """The endpoint, where the weights came from, a digest of all of them, the process."""
        digest = hashlib.sha256()
        for tensor in self._model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return str(self._server.endpoint), self._origin, digest.hexdigest()[:16], os.getpid()


def main() -> int:
    """Start three, kill the first, start a fourth."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.pt")
        torch.save(build().state_dict(), file)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        names: dict[str, str] = {}
        digests: list[str] = []
        instances = []

        def start(name: str) -> None:
            instances.append(Instance.remote("127.0.0.1", str(file)))
            endpoint, origin, digest, _ = ray.get(instances[-1].describe.remote())
            names[endpoint] = name
            digests.append(digest)
            print(f"{name}: weights {digest} from {names.get(origin, origin)}", flush=True)

        for name in "abc":
            start(name)
        ray.kill(instances[0])
        file.unlink()
        print("a is killed, and the file is gone", flush=True)
        start("d")
        ray.kill(ray.get_actor("servers", "fleet"))
        ray.shutdown()
    return 0 if len(set(digests)) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
