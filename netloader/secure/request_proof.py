"""Proof of a token in one HTTP request, so that the token itself never crosses the wire.

The header is `Authorization: Netloader-HMAC-SHA256 time=<Unix seconds>, proof=<64 hex digits>`. The
proof covers method, path, time and body, and needs no answer of the server first, so any of several
processes behind one port can check it. An attacker who reads a request can repeat it unchanged for
WINDOW_S, and can test guessed tokens against it, as against a handshake.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from netloader.config import Secret
from netloader.errors import NetloaderError
from netloader.fsm.auth import hmac_sha256
from netloader.fsm.canonical import canonical

FILL: Final = "/netloader/fill"
"""The path of the request that fills an instance on standby."""
SCHEME: Final = "Netloader-HMAC-SHA256"
WINDOW_S: Final = 300
"""The most seconds between the clocks of both sides, and for which a request can be repeated."""
WRONG: Final = (
    "the token that is shown or proven is none of AUTH_TOKEN_FILE, and no API key of vLLM's"
)
_PROOF: Final = re.compile(r"time=(?P<time>\d{1,12}), ?proof=(?P<proof>[0-9a-f]{64})", re.ASCII)


class ProofError(NetloaderError):
    """A request shows and proves no token that is known; the text says why, and holds no secret."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What a proof covers of a request."""

    method: str
    path: str
    """Without what a proxy puts before it."""
    body: bytes

    def prove(self, token: Secret, now_s: float) -> str:
        """The header `Authorization` that proves a token for this request, at a Unix time."""
        time_s = int(now_s)
        return f"{SCHEME} time={time_s}, proof={self._proof(token, time_s)}"

    def check(self, header: bytes, tokens: Iterable[Secret], now_s: float) -> None:
        """Refuse a header `Authorization` that proves none of the tokens, and is none as Bearer.

        Each token is tried, in constant time, so that time does not tell which one fits.

        Raises:
            ProofError: it is to be refused; an old proof of a right token by the difference.
        """
        scheme, _, said = header.decode(errors="surrogateescape").partition(" ")
        if scheme.lower() == "bearer":
            if not _any_same(said.strip(), (token.reveal() for token in tokens)):
                raise ProofError(WRONG)
            return
        found = _PROOF.fullmatch(said.strip()) if scheme.lower() == SCHEME.lower() else None
        if found is None:
            remedy = f"prove one in the header Authorization ({SCHEME}), or show it there (Bearer)"
            raise ProofError(f"a token of AUTH_TOKEN_FILE or vLLM's API key is needed: {remedy}")
        time_s = int(found["time"])
        if not _any_same(found["proof"], (self._proof(token, time_s) for token in tokens)):
            raise ProofError(WRONG)
        if abs(now_s - time_s) > WINDOW_S:
            late = now_s - time_s
            side = f"{abs(late):.0f} s {'behind' if late > 0 else 'ahead of'}"
            why = f"the proof was made by a clock {side} this one, and {WINDOW_S} s are allowed"
            raise ProofError(f"{why}: set the clocks of both hosts, and ask again")

    def _proof(self, token: Secret, time_s: int) -> str:
        content = (self.method, self.path, time_s, hashlib.sha256(self.body).hexdigest())
        return hmac_sha256(canonical(("netloader", "http request", *content)), token)


def _any_same(shown: str, right: Iterable[str]) -> bool:
    data = shown.encode(errors="surrogateescape")
    return any([hmac.compare_digest(data, each.encode()) for each in right])  # noqa: C419 - each
