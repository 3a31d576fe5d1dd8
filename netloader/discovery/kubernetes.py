"""The ready pods of a Kubernetes service, from its EndpointSlices (`discovery.k8s.io/v1`).

One GET with the credentials that every pod has: the official client would bring a dozen packages
into the engine's process for it. The token is read anew each time, because Kubernetes rotates it.
The service account needs the verb `list` on `endpointslices`.
"""

import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from netloader.config import Endpoint
from netloader.discovery.base import (
    MOST_CANDIDATES,
    Candidate,
    DiscoveryError,
    Found,
    Key,
    is_address,
)
from netloader.discovery.http import ask

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds `token` and `ca.crt`."""
HOST, PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
"""Environment variables that every pod has."""
MOST_SLICES: Final = 50
"""EndpointSlices in one answer; each has 100 endpoints at most, unless configured otherwise."""
PORT_NAME: Final = "netloader"
"""The port that is taken where a service has several."""


@dataclass(frozen=True, slots=True)
class KubernetesService:
    """The endpoints of one service."""

    namespace: str
    service: str
    account: Path = ACCOUNT

    @property
    def name(self) -> str:
        """As the operator wrote it."""
        return f"k8s://{self.namespace}/{self.service}"

    def find(self, key: Key, timeout_s: float) -> Found:
        """The endpoints that are ready."""
        del key
        try:
            server = Endpoint(os.environ[HOST], int(os.environ.get(PORT, "443")))
            token = (self.account / "token").read_text().strip()
            tls = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        except (KeyError, ValueError, OSError) as error:
            raise DiscoveryError("this process is in no pod with a service account") from error
        chosen = urlencode(
            {"labelSelector": f"kubernetes.io/service-name={self.service}", "limit": MOST_SLICES}
        )
        path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(self.namespace)}/endpointslices"
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        answer = ask(server, f"{path}?{chosen}", timeout_s, headers, tls)
        return self._found(answer.get("items"))

    def _found(self, items: object) -> Found:
        if not isinstance(items, list):
            raise DiscoveryError("its answer has no items")
        known: dict[Endpoint, None] = {}
        unreadable = 0
        for item in items[:MOST_SLICES]:
            try:
                known |= dict.fromkeys(_ready(item))
            except (KeyError, TypeError, ValueError, AttributeError):
                unreadable += 1
        candidates = tuple(Candidate(endpoint) for endpoint in [*known][:MOST_CANDIDATES])
        return Found(candidates, unreadable)


def _ready(item: Any) -> Iterator[Endpoint]:
    """The ready endpoints of a slice. A condition that is not there counts as true, as specified.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no slice.
    """
    if item["addressType"] not in ("IPv4", "IPv6"):
        return
    ports = [port for port in item.get("ports") or [] if port.get("protocol", "TCP") == "TCP"]
    named = [port for port in ports if port.get("name") == PORT_NAME]
    port = (named or ports)[0]["port"] if ports else None
    if port is None:
        return
    for endpoint in item.get("endpoints") or []:
        if (endpoint.get("conditions") or {}).get("ready") is not False:
            for address in endpoint["addresses"][:1]:
                place = Endpoint(address, port)
                if is_address(place):
                    yield place
