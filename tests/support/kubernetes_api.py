"""A server that answers as the Kubernetes API does to a list of EndpointSlices, over TLS."""

import contextlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

TOKEN = "token-of-the-pod"


def endpoint_slice(
    service: str, endpoints: list[dict[str, Any]], port: int, family: str = "IPv4"
) -> dict[str, Any]:
    """An EndpointSlice as the API gives it, with the fields that its schema requires."""
    return {
        "metadata": {
            "name": f"{service}-x",
            "namespace": "fleet",
            "labels": {"kubernetes.io/service-name": service},
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
    account: Path, slices: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The API of a cluster with these slices; `account` becomes the folder of a service account."""

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            wanted = parse_qs(url.query).get("labelSelector", [""])[0].partition("=")[2]
            label = "kubernetes.io/service-name"
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._answer(401, {"kind": "Status", "status": "Failure", "code": 401})
            elif url.path != "/apis/discovery.k8s.io/v1/namespaces/fleet/endpointslices":
                self._answer(403, {"kind": "Status", "status": "Failure", "code": 403})
            else:
                items = [s for s in slices if s["metadata"]["labels"][label] == wanted]
                kind = {"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1"}
                self._answer(200, {**kind, "metadata": {"resourceVersion": "1"}, "items": items})

        def _answer(self, code: int, document: object) -> None:
            data = json.dumps(document).encode()
            self.send_response(code)
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


def _credentials(account: Path) -> None:
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-keyout", str(account / "key"), "-out", str(account / "ca.crt")),
        *("-days", "2", "-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (account / "token").write_text(TOKEN)
