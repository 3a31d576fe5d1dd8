"""What a fleet has beside its engines: a registry, a Prometheus, an authority for certificates."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from demo.paths import CHECKOUT
from demo.servers import DemoError

RULES: Final = CHECKOUT / "docs" / "operate" / "prometheus" / "alerts.yml"
FIRST_PORT: Final = 23000
LAST_PORT: Final = 32000
START_S: Final = 60.0
STOP_S: Final = 30.0
KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """A program of the system, from when it accepts connections."""
    path = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        raise DemoError(
            f"{command[0]} is not installed; on Debian: apt install {_package(command)}"
        )
    with log.open("wb") as sink:
        process = subprocess.Popen([path, *command[1:]], stdout=sink, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + START_S
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > until:
                raise DemoError(f"{command[0]} did not start; see {log}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _package(command: Sequence[str]) -> str:
    return {"redis-server": "redis-server"}.get(command[0], command[0])


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def redis(port: int) -> tuple[str, ...]:
    """The command of a registry that keeps nothing on disk."""
    return ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")


def prometheus(folder: Path, port: int, targets: Mapping[str, int]) -> tuple[str, ...]:
    """The command of a Prometheus with the alert rules of the docs; `targets` are page ports."""
    scraped = [
        {"targets": [f"127.0.0.1:{page}"], "labels": {"instance": name}}
        for name, page in targets.items()
    ]
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config = {
        "global": every,
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "netloader", "static_configs": scraped}],
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    store = f"--storage.tsdb.path={folder / 'prometheus'}"
    address = f"--web.listen-address=127.0.0.1:{port}"
    return ("prometheus", f"--config.file={file}", store, address)


class Authority:
    """The certificate authority of the fleet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pem = folder / "ca.pem"
        self._key = folder / "ca.key"
        subject = ("-subj", "/CN=netloader fleet", "-days", "2")
        openssl("req", "-x509", *KEY, "-keyout", self._key, "-out", self.pem, *subject)

    def settings(self, name: str, days: int = 1) -> dict[str, object]:
        """TLS settings with a certificate for this host; with -1 days, one that has expired."""
        request, pem, key, more = (self._folder / f"{name}.{k}" for k in ("csr", "pem", "key", "x"))
        openssl("req", *KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        more.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        signed = ("-CA", self.pem, "-CAkey", self._key, "-CAcreateserial", "-extfile", more)
        openssl("x509", "-req", "-in", request, *signed, "-days", str(days), "-out", pem)
        return {"TLS_CERT": str(pem), "TLS_KEY": str(key), "TLS_CA": str(self.pem)}


def quiet_ports(count: int) -> list[int]:
    """Ports that are free, and that the system gives to no outgoing connection."""
    found: list[int] = []
    for port in range(FIRST_PORT, LAST_PORT):
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise DemoError(f"less than {count} ports are free from {FIRST_PORT} to {LAST_PORT}")


def openssl(*arguments: str | Path) -> None:
    """Run the command openssl."""
    command = ["openssl", *map(str, arguments)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DemoError(f"openssl: {getattr(error, 'stderr', error)!r}") from error
