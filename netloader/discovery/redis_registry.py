"""Servers that a Redis server knows. Needs the package `redis`.

For each key there is a sorted set of endpoints, whose scores are the ends of their leases in
seconds of Redis's own clock, and a hash with the entry of each endpoint. Scripts read and write
both in one step, and never send more than they may. A lease that has ended is not sent, and the
next `put` removes it, so nothing has to be cleaned up after a server that was killed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final
from urllib.parse import SplitResult, unquote

from netloader.config import Endpoint, Secret
from netloader.discovery import entries
from netloader.discovery.base import (
    MOST_CANDIDATES,
    MOST_ENTRY_BYTES,
    MOST_OWNER_CHARS,
    Candidate,
    DiscoveryError,
    Found,
    Key,
)

PORT: Final = 6379
KEPT_S: Final = 3600
"""After so long without a `put` Redis forgets a key. No lease is longer."""
MOST_KEYS: Final = 64
"""Models and ranks that `every` looks at."""
GLOB: Final = r"[*?\[\]\\]"
"""What has a meaning in a pattern of Redis."""

FIND: Final = """
local now = tonumber(redis.call('TIME')[1])
local names = redis.call('ZREVRANGEBYSCORE', KEYS[1], now + ARGV[3], now, 'LIMIT', 0, ARGV[1])
local found = {}
for i, name in ipairs(names) do
  local size = redis.call('HSTRLEN', KEYS[2], name)
  local fits = size > 0 and size <= tonumber(ARGV[2])
  found[i] = fits and redis.call('HGET', KEYS[2], name) or ''
end
return found
"""
PUT: Final = """
local now = tonumber(redis.call('TIME')[1])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - 1, 'LIMIT', 0, 1000)) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
"""
REMOVE: Final = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
"""
CLAIM: Final = """
local holder = redis.call('GETRANGE', KEYS[1], 0, ARGV[3])
if holder == '' or holder == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  return ARGV[1]
end
return holder
"""
RELEASE: Final = """
if redis.call('GETRANGE', KEYS[1], 0, ARGV[2]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class RedisRegistry:
    """Entries in a Redis server. Each call opens a connection of its own, and closes it."""

    def __init__(self, url: SplitResult) -> None:
        self._endpoint = Endpoint(url.hostname or "", url.port or PORT)
        self._user = unquote(url.username or "")
        self._password = Secret(unquote(url.password or ""))
        self._tls = url.scheme == "rediss"
        self._prefix = url.path.strip("/") or "netloader"
        self.name = f"{url.scheme}://{self._endpoint}/{self._prefix}"

    def find(self, key: Key, timeout_s: float) -> Found:
        """The servers with the newest leases."""
        with self._client(timeout_s) as client:
            return self._found(client, self._base(key))

    def every(self, timeout_s: float) -> Found:
        """Those of all models, one after the other."""
        escaped = re.sub(GLOB, r"\\\g<0>", self._prefix)
        pattern = f"{escaped}:{{*}}:leases"
        with self._client(timeout_s) as client:
            keys = [*islice(client.scan_iter(pattern, count=1000), MOST_KEYS)]
            bases = [key.decode(errors="replace").removesuffix(":leases") for key in keys]
            parts = [self._found(client, base) for base in bases]
        candidates = [candidate for part in parts for candidate in part.candidates]
        unreadable = sum(part.unreadable for part in parts)
        return Found(tuple(candidates[:MOST_CANDIDATES]), unreadable)

    @staticmethod
    def _found(client: Any, base: str) -> Found:
        most = (MOST_CANDIDATES, MOST_ENTRY_BYTES, KEPT_S)
        answer = client.eval(FIND, 2, f"{base}:leases", f"{base}:entries", *most)
        if not isinstance(answer, list):
            raise DiscoveryError("what it answers is no list")
        found = [entries.parse(item) if isinstance(item, bytes) else None for item in answer]
        known = tuple(candidate for candidate in found if candidate is not None)
        return Found(known, unreadable=len(found) - len(known))

    def put(self, key: Key, candidate: Candidate, lease_s: int, timeout_s: float) -> None:
        """Put a server there, or renew its lease."""
        said = (str(candidate.endpoint), entries.render(candidate), lease_s, KEPT_S)
        self._run(PUT, key, said, timeout_s)

    def remove(self, key: Key, endpoint: Endpoint, timeout_s: float) -> None:
        """Take a server away."""
        self._run(REMOVE, key, (str(endpoint),), timeout_s)

    def claim(self, key: Key, owner: str, lease_s: int, timeout_s: float) -> str:
        """Take a claim, or say who holds it."""
        with self._client(timeout_s) as client:
            given = (owner, lease_s, MOST_OWNER_CHARS - 1)
            holder = client.eval(CLAIM, 1, f"{self._base(key)}:claim", *given)
        if not isinstance(holder, bytes):
            raise DiscoveryError("the owner of a claim is no text")
        return holder.decode(errors="replace")

    def release(self, key: Key, owner: str, timeout_s: float) -> None:
        """Give a claim back."""
        with self._client(timeout_s) as client:
            given = (owner, MOST_OWNER_CHARS - 1)
            client.eval(RELEASE, 1, f"{self._base(key)}:claim", *given)

    def _base(self, key: Key) -> str:
        return f"{self._prefix}:{{{key.model}:{key.digest}}}"  # braces: one slot of a cluster

    def _run(
        self, script: str, key: Key, said: tuple[str | bytes | int, ...], timeout_s: float
    ) -> None:
        base = self._base(key)
        with self._client(timeout_s) as client:
            client.eval(script, 2, f"{base}:leases", f"{base}:entries", *said)

    @contextmanager
    def _client(self, timeout_s: float) -> Iterator[Any]:
        """A connection of its own, for the block.

        Raises:
            DiscoveryError: Redis cannot be reached, or refuses.
        """
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise DiscoveryError("redis:// needs the package redis: install it") from error
        client = redis.Redis(
            host=self._endpoint.host,
            port=self._endpoint.port,
            username=self._user or None,
            password=self._password.reveal() or None,
            ssl=self._tls,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            yield client
        except redis.RedisError as error:
            raise DiscoveryError(str(error)) from error
        finally:
            client.close()
