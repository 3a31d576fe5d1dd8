"""One request over HTTP whose answer is JSON of bounded size."""

import http.client
import json
import ssl
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final

from netloader.config import Endpoint
from netloader.discovery.base import DiscoveryError

MOST_BYTES: Final = 4 << 20
"""The most that an answer may have: 256 entries with their base64 need 400 KiB, a hundred endpoints
of Kubernetes 100 KiB."""


def ask(
    endpoint: Endpoint,
    path: str,
    timeout_s: float,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None = None,
    document: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The JSON object that a server answers to GET, or with a document to POST.

    Raises:
        DiscoveryError, OSError: there is none; no header is shown.
    """
    if tls is None:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_s)
    else:
        connection = http.client.HTTPSConnection(
            endpoint.host, endpoint.port, timeout=timeout_s, context=tls
        )
    body = None if document is None else json.dumps(document)
    with closing(connection):
        try:
            connection.request("GET" if body is None else "POST", path, body, dict(headers))
            answer = connection.getresponse()
            data = answer.read(MOST_BYTES + 1)
        except http.client.HTTPException as error:
            raise DiscoveryError(f"it does not speak HTTP: {type(error).__name__}") from error
    if len(data) > MOST_BYTES:
        raise DiscoveryError(f"its answer is larger than {MOST_BYTES} bytes")
    if answer.status != http.client.OK:
        raise DiscoveryError(f"it answers {answer.status} {answer.reason[:80]}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DiscoveryError("its answer is no JSON") from error
    if not isinstance(found, dict):
        raise DiscoveryError("its answer is no JSON object")
    return found
