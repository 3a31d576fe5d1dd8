"""Servers that an etcd knows, by its JSON gateway over HTTP (`/v3/...`).

Each server has one key, which is attached to a lease. etcd removes the key when the lease ends, so
nothing has to be cleaned up after a server that was killed. Each `put` takes a new lease; the old
one ends by itself, with no key attached.
"""

import base64
import binascii
import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, unquote

from netloader.config import Endpoint, Secret
from netloader.discovery import entries
from netloader.discovery.base import (
    MOST_CANDIDATES,
    MOST_OWNER_CHARS,
    Candidate,
    DiscoveryError,
    Found,
    Key,
)
from netloader.discovery.http import ask

PORT: Final = 2379


class EtcdRegistry:
    """Entries in an etcd. Each request has a connection of its own."""

    def __init__(self, url: SplitResult) -> None:
        self._endpoint = Endpoint(url.hostname or "", url.port or PORT)
        self._user = unquote(url.username or "")
        self._password = Secret(unquote(url.password or ""))
        self._tls = ssl.create_default_context() if url.scheme == "etcds" else None
        self._prefix = url.path.strip("/") or "netloader"
        self.name = f"{url.scheme}://{self._endpoint}/{self._prefix}"

    def find(self, key: Key, timeout_s: float) -> Found:
        """The servers whose keys were written last."""
        return self._range(self._path(key), timeout_s)

    def every(self, timeout_s: float) -> Found:
        """Those of all models, in the same order."""
        return self._range(f"{self._prefix}/", timeout_s)

    def _range(self, begin: str, timeout_s: float) -> Found:
        document = {
            "key": _text(begin),
            "range_end": _text(begin[:-1] + "0"),  # what follows "/": all that begins like this
            "limit": MOST_CANDIDATES,
            "sort_order": "DESCEND",
            "sort_target": "MOD",
        }
        rows = self._ask("kv/range", document, timeout_s).get("kvs", [])
        if not isinstance(rows, list):
            raise DiscoveryError("its keys are no list")
        found = [_candidate(row) for row in rows[:MOST_CANDIDATES]]
        known = tuple(candidate for candidate in found if candidate is not None)
        return Found(known, unreadable=len(found) - len(known))

    def put(self, key: Key, candidate: Candidate, lease_s: int, timeout_s: float) -> None:
        """Put a server there with a new lease."""
        lease = self._lease(lease_s, timeout_s)
        place = _text(self._path(key) + str(candidate.endpoint))
        value = base64.b64encode(entries.render(candidate)).decode()
        self._ask("kv/put", {"key": place, "value": value, "lease": lease}, timeout_s)

    def remove(self, key: Key, endpoint: Endpoint, timeout_s: float) -> None:
        """Take a server away."""
        place = _text(self._path(key) + str(endpoint))
        self._ask("kv/deleterange", {"key": place}, timeout_s)

    def claim(self, key: Key, owner: str, lease_s: int, timeout_s: float) -> str:
        """Take a claim with a new lease, or say who holds it."""
        place = self._claimed(key)
        lease = self._lease(lease_s, timeout_s)
        put = {"requestPut": {"key": place, "value": _text(owner), "lease": lease}}
        same = _holds(place, owner)
        taken = {
            "compare": [{"key": place, "target": "CREATE", "createRevision": "0"}],
            "success": [put],
            "failure": [
                {"requestTxn": {"compare": [same], "success": [put]}},
                {"requestRange": {"key": place}},
            ],
        }
        answer = self._ask("kv/txn", taken, timeout_s)
        return owner if answer.get("succeeded") is True else _owner(answer)

    def release(self, key: Key, owner: str, timeout_s: float) -> None:
        """Give a claim back."""
        place = self._claimed(key)
        gone = {"requestDeleteRange": {"key": place}}
        self._ask("kv/txn", {"compare": [_holds(place, owner)], "success": [gone]}, timeout_s)

    def _claimed(self, key: Key) -> str:
        """The key of a claim: not below the prefix, where servers are."""
        return _text(f"{self._prefix}.claims/{key.model}/{key.digest}")

    def _lease(self, lease_s: int, timeout_s: float) -> str:
        lease = self._ask("lease/grant", {"TTL": lease_s}, timeout_s).get("ID")
        if not isinstance(lease, str):
            raise DiscoveryError("it gives no lease")
        return lease

    def _path(self, key: Key) -> str:
        return f"{self._prefix}/{key.model}/{key.digest}/"

    def _ask(self, what: str, document: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._user:
            login = {"name": self._user, "password": self._password.reveal()}
            token = self._post("auth/authenticate", login, timeout_s, headers).get("token")
            headers["Authorization"] = str(token)
        return self._post(what, document, timeout_s, headers)

    def _post(
        self, what: str, document: Mapping[str, object], timeout_s: float, headers: dict[str, str]
    ) -> dict[str, Any]:
        return ask(self._endpoint, f"/v3/{what}", timeout_s, headers, self._tls, document)


def _text(plain: str) -> str:
    return base64.b64encode(plain.encode()).decode()


def _holds(place: str, owner: str) -> dict[str, str]:
    """The condition that an owner holds a claim."""
    return {"key": place, "target": "VALUE", "value": _text(owner)}


def _owner(answer: Mapping[str, Any]) -> str:
    """Who holds a claim, in the answer to a transaction."""
    try:
        (row,) = answer["responses"][-1]["response_range"]["kvs"]
        return base64.b64decode(row["value"]).decode(errors="replace")[:MOST_OWNER_CHARS]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DiscoveryError("it does not say who holds a claim") from error


def _candidate(row: object) -> Candidate | None:
    value = row.get("value") if isinstance(row, dict) else None
    try:
        return entries.parse(base64.b64decode(value)) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        return None
