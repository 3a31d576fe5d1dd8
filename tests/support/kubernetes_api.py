"""A server that answers as the Kubernetes API does to a list of EndpointSlices, over TLS.

Each answer is checked against the schema that Kubernetes publishes.
"""

import contextlib
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support import kubernetes_schema

TOKEN: Final = "token-of-the-pod"
LABEL: Final = "kubernetes.io/service-name"
SLICES_OF: Final = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"


def endpoint_slice(
    service: str, endpoints: list[dict[str, Any]], port: int, family: str = "IPv4"
) -> dict[str, Any]:
    """An EndpointSlice as the API gives it, with the fields that its schema requires."""
    return {
        "metadata": {
            "name": f"{service}-x",
            "namespace": "fleet",
            "labels": {LABEL: service},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [
            {"name": "http", "port": 80, "protocol": "TCP"},
            {"name": "netloader", "port": port, "protocol": "TCP"},
        ],
    }


@contextlib.contextmanager
def kubernetes(
    account: Path,
    slices: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Mapping[str, Any]], None] = kubernetes_schema.check,
) -> Iterator[None]:
    """The API of a cluster with these slices; `account` becomes the folder of a service account.

    Raises:
        jsonschema.ValidationError: it gave an answer that `check` does not take.
    """
    faults: list[Exception] = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._answer(status(401, "Unauthorized", "Unauthorized"))
            elif url.path != SLICES_OF.format("fleet"):
                message = f"endpointslices.discovery.k8s.io is forbidden: {url.path}"
                self._answer(status(403, "Forbidden", message))
            else:
                self._answer(chosen(slices, parse_qs(url.query)))

        def _answer(self, document: dict[str, Any]) -> None:
            try:
                check(document)
            except Exception as error:
                faults.append(error)
            data = json.dumps(document).encode()
            self.send_response(document.get("code", 200))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    _credentials(account)
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(account / "ca.crt", account / "key")
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_address[1]))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
    for fault in faults:
        raise fault


def chosen(slices: list[dict[str, Any]], query: Mapping[str, list[str]]) -> dict[str, Any]:
    """The EndpointSliceList that the API answers to these parameters: the first page of it."""
    service = query["labelSelector"][0].removeprefix(f"{LABEL}=")
    found = [each for each in slices if each["metadata"]["labels"][LABEL] == service]
    page = found[: int(query["limit"][0])]
    metadata: dict[str, Any] = {"resourceVersion": "1"}
    if len(page) < len(found):
        metadata |= {"continue": "page-2", "remainingItemCount": len(found) - len(page)}
    kind = {"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1"}
    return {**kind, "metadata": metadata, "items": page}


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    """What the API answers to a request that it refuses."""
    kind = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**kind, "message": message, "reason": reason, "code": code}


def _credentials(account: Path) -> None:
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-keyout", str(account / "key"), "-out", str(account / "ca.crt")),
        *("-days", "2", "-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (account / "token").write_text(TOKEN)
