"""What an operator writes, as a finder. No error shows the text: it may hold a password."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from netloader.config import Endpoint, Secret, shown
from netloader.discovery.base import Finder, Registry, is_address
from netloader.discovery.etcd import EtcdRegistry
from netloader.discovery.files import Files
from netloader.discovery.kubernetes import KubernetesService
from netloader.discovery.names import Address, HostName, ServiceName
from netloader.discovery.ray_registry import RayRegistry
from netloader.discovery.redis_registry import RedisRegistry

RANK: Final = "{RANK}"
"""What stands for the number of the rank in a path."""


def is_looked_up(text: str) -> bool:
    """Whether a text is more than host and port, or is meant to be."""
    return "://" in text or "@" in text or text.startswith(tuple(SCHEMES))


def is_registry(text: str) -> bool:
    """Whether a text describes a registry, where servers may publish themselves."""
    return text.startswith(tuple(REGISTRIES))


@dataclass(frozen=True, slots=True)
class FinderSpec:
    """What an operator wrote, for finders of any rank."""

    text: Secret

    def finder(self, rank: int) -> Finder:
        """The finder for a rank, as `finder_of`."""
        return finder_of(self.text.reveal(), rank)


def finder_of(text: str, rank: int) -> Finder:
    """The finder that `text` describes, for a rank of a client.

    A port that is written, or that DNS names, is that of an instance: every rank asks there.

    Raises:
        ValueError: it cannot be used; the message says what to write.
    """
    for scheme, make in SCHEMES.items():
        if text.startswith(scheme):
            rest = text.removeprefix(scheme)
            if not rest.strip() or not rest.isprintable():
                raise ValueError(f"{scheme} is followed by nothing that can be looked up")
            return make(text, rank)
    if is_looked_up(text):
        raise ValueError(f"there is no such kind of source; write host:port, or {KNOWN}")
    return located(Endpoint.parse(text))


def located(endpoint: Endpoint) -> Finder:
    """The finder of a source that is written as host and port."""
    return Address(endpoint) if is_address(endpoint) else HostName(endpoint)


def registry_of(text: str) -> Registry:
    """The registry that `text` describes, for a server that publishes itself.

    Raises:
        ValueError: it cannot be used; the message says what to write.
    """
    for scheme, make in REGISTRIES.items():
        if text.startswith(scheme):
            return make(text)
    kinds = ", ".join(f"{scheme}host:port/prefix" for scheme in SERVERS)
    raise ValueError(f"write {kinds}, {RAY}")


def _files(text: str, rank: int) -> Finder:
    path = text.removeprefix("file:")
    if not path.startswith("/"):
        remedy = "write a path from / on, of a folder of weights or of address files"
        raise ValueError(f"{shown(text)} is no absolute path; {remedy}")
    return Files(path.replace(RANK, str(rank)))


def _service_name(text: str, rank: int) -> Finder:
    del rank  # all ranks of an instance are found at its port
    return ServiceName(text.removeprefix("srv+"))


def _kubernetes(text: str, rank: int) -> Finder:
    del rank  # as above
    found = _SERVICE.fullmatch(text)
    if not found:
        raise ValueError("write k8s://namespace/service")
    return KubernetesService(found["namespace"], found["service"])


def _registry(text: str, rank: int) -> Finder:
    del rank  # the key says which one it is
    return registry_of(text)


def _ray(text: str) -> Registry:
    found = _ACTOR.fullmatch(text)
    if not found:
        raise ValueError(f"write {RAY}: two names of letters, digits, dots, dashes, underscores")
    return RayRegistry(found["namespace"], found["actor"])


def _server(text: str) -> Registry:
    url = _split(text)
    return SERVERS[f"{url.scheme}://"](url)


def _split(text: str) -> SplitResult:
    """The parts of a URL of a registry that is a server.

    Raises:
        ValueError: it has other parts, or its host or port cannot be used.
    """
    try:
        url = urlsplit(text)
        Endpoint(url.hostname or "", url.port or 1)
    except ValueError as error:  # whose message shows the text
        remedy = "write host:port/prefix after ://, and % codes for what is special in a password"
        raise ValueError(f"the host or the port cannot be used; {remedy}") from error
    if url.query or url.fragment:
        raise ValueError("leave out what begins with ? or #; a password has % codes for them")
    return url


_SERVICE: Final = re.compile("k8s://(?P<namespace>[a-z0-9-]{1,63})/(?P<service>[a-z0-9-]{1,63})")
_ACTOR: Final = re.compile(r"ray://(?P<namespace>[\w.-]{1,64})/(?P<actor>[\w.-]{1,64})", re.ASCII)
RAY: Final = "ray://namespace/actor"
SERVERS: Final[Mapping[str, Callable[[SplitResult], Registry]]] = {
    "redis://": RedisRegistry,
    "rediss://": RedisRegistry,
    "etcd://": EtcdRegistry,
    "etcds://": EtcdRegistry,
}
"""Registries at a host and a port, over TLS where the name ends with s."""
REGISTRIES: Final[Mapping[str, Callable[[str], Registry]]] = {
    **dict.fromkeys(SERVERS, _server),
    "ray://": _ray,
}
"""Where servers may publish themselves."""
SCHEMES: Final[Mapping[str, Callable[[str, int], Finder]]] = {
    "srv+": _service_name,
    "file:": _files,
    "k8s://": _kubernetes,
    **dict.fromkeys(REGISTRIES, _registry),
}
KNOWN: Final = ", ".join(f"{scheme}..." for scheme in SCHEMES)
"""The kinds of sources that are looked up, for messages."""
