"""Certificates as an operator makes them, with the command openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from netloader.secure.tls import Tls

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
HERE = "IP:127.0.0.1,DNS:localhost"


def openssl(*arguments: str | Path) -> None:
    """Run the command; skips the test where there is none."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no command openssl here")
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, timeout=60)


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder."""

    folder: Path
    name: str = "ca"

    @property
    def pem(self) -> Path:
        """Its own certificate."""
        return self.folder / f"{self.name}.pem"

    def make(self) -> "Authority":
        """Make its key and its certificate."""
        key = self.folder / f"{self.name}.key"
        subject = ("-subj", f"/CN=netloader test {self.name}", "-days", "2")
        openssl("req", "-x509", *KEY, "-keyout", key, "-out", self.pem, *subject)
        return self

    def issue(self, name: str, host: str = HERE, days: int = 1) -> tuple[Path, Path]:
        """A certificate for a host, and its key; with -1 days, one that has expired."""
        request, pem, key = (self.folder / f"{name}.{kind}" for kind in ("csr", "pem", "key"))
        openssl("req", *KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        extension = self.folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={host}\n")
        signed = ("-CA", self.pem, "-CAkey", self.folder / f"{self.name}.key", "-CAcreateserial")
        for_days = ("-days", str(days), "-extfile", extension)
        openssl("x509", "-req", "-in", request, *signed, *for_days, "-out", pem)
        return pem, key

    def tls(self, name: str, host: str = HERE, days: int = 1) -> Tls:
        """A side with a certificate of this authority, which trusts no other."""
        return Tls(*self.issue(name, host, days), self.pem)
