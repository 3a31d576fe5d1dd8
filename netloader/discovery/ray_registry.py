"""Servers that a named actor of a Ray cluster knows. Needs the package `ray`.

The first server that publishes itself creates the actor, on its own node and detached, so that it
outlives its creator. If its process or node is lost, Ray starts it again, empty, and servers put
themselves back when they renew their leases.

Only a process that is part of the cluster can ask: an actor, a task, or a program after `ray.init`.
netloader connects none, because Ray ends every connected process a minute after it has lost the
cluster's head: a server that is no part of the cluster must not depend on that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netloader.config import Endpoint
from netloader.discovery import entries
from netloader.discovery.base import Candidate, DiscoveryError, Found, Key
from netloader.discovery.ray_directory import Directory


class RayRegistry:
    """Entries in an actor that is found by namespace and name."""

    def __init__(self, namespace: str, actor: str) -> None:
        self._namespace = namespace
        self._actor = actor
        self.name = f"ray://{namespace}/{actor}"

    def find(self, key: Key, timeout_s: float) -> Found:
        """The servers with the newest leases; nobody while there is no actor."""
        return self._found("find", (_text(key),), timeout_s)

    def every(self, timeout_s: float) -> Found:
        """Those of all models, in the same order."""
        return self._found("every", (), timeout_s)

    def put(self, key: Key, candidate: Candidate, lease_s: int, timeout_s: float) -> None:
        """Put a server there, or renew its lease."""
        place, entry = str(candidate.endpoint), entries.render(candidate)
        with _cluster() as ray:
            call = self._created(ray).put.remote(_text(key), place, entry, lease_s)
            ray.get(call, timeout=timeout_s)

    def remove(self, key: Key, endpoint: Endpoint, timeout_s: float) -> None:
        """Take a server away."""
        with _cluster() as ray:
            actor = self._known(ray)
            if actor is not None:
                ray.get(actor.remove.remote(_text(key), str(endpoint)), timeout=timeout_s)

    def claim(self, key: Key, owner: str, lease_s: int, timeout_s: float) -> str:
        """Take a claim, or say who holds it."""
        with _cluster() as ray:
            call = self._created(ray).claim.remote(_text(key), owner, lease_s)
            holder = ray.get(call, timeout=timeout_s)
        if not isinstance(holder, str):
            raise DiscoveryError("the owner of a claim is no text")
        return holder

    def release(self, key: Key, owner: str, timeout_s: float) -> None:
        """Give a claim back."""
        with _cluster() as ray:
            actor = self._known(ray)
            if actor is not None:
                ray.get(actor.release.remote(_text(key), owner), timeout=timeout_s)

    def _found(self, method: str, said: tuple[str, ...], timeout_s: float) -> Found:
        with _cluster() as ray:
            actor = self._known(ray)
            if actor is None:
                return Found()
            answer = ray.get(getattr(actor, method).remote(*said), timeout=timeout_s)
        if not isinstance(answer, list):
            raise DiscoveryError("what it answers is no list")
        found = [entries.parse(item) if isinstance(item, bytes) else None for item in answer]
        known = tuple(candidate for candidate in found if candidate is not None)
        return Found(known, unreadable=len(found) - len(known))

    def _known(self, ray: Any) -> Any:
        """The actor, or None while there is none."""
        try:
            return ray.get_actor(self._actor, self._namespace)
        except ValueError:  # Ray's word for it
            return None

    def _created(self, ray: Any) -> Any:
        """The actor, which is created where there is none."""
        from netloader.io.clock import monotonic

        here = ray.get_runtime_context().get_node_id()  # where netloader can be imported
        near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        options = {
            "name": self._actor,
            "namespace": self._namespace,
            "get_if_exists": True,
            "lifetime": "detached",
            "max_restarts": -1,
            "num_cpus": 0,
            "scheduling_strategy": near,
        }
        return ray.remote(Directory).options(**options).remote(monotonic)


def _text(key: Key) -> str:
    return f"{key.model}:{key.digest}"


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, for the block.

    Raises:
        DiscoveryError: this process is no part of a cluster, or Ray has no answer.
    """
    try:
        import ray
    except ImportError as error:
        raise DiscoveryError("ray:// needs the package ray: install it") from error
    if not ray.is_initialized():
        raise DiscoveryError(
            "this process is no part of a Ray cluster; load the model in an actor or a task, "
            "or call ray.init first"
        )
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise DiscoveryError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
