"""Sources that DNS names: every address of a name, and the targets of an SRV record."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netloader.config import Endpoint
from netloader.discovery.base import MOST_CANDIDATES, Candidate, DiscoveryError, Found, Key
from netloader.errors import cause


@dataclass(frozen=True, slots=True)
class Address:
    """A source whose address the operator wrote."""

    endpoint: Endpoint

    @property
    def name(self) -> str:
        """The address."""
        return str(self.endpoint)

    def find(self, key: Key, timeout_s: float) -> Found:
        """The source itself."""
        del key, timeout_s
        return Found((Candidate(self.endpoint),))


@dataclass(frozen=True, slots=True)
class HostName:
    """A name that may have many addresses, as that of a headless Kubernetes service has."""

    endpoint: Endpoint

    @property
    def name(self) -> str:
        """The name and the port."""
        return str(self.endpoint)

    def find(self, key: Key, timeout_s: float) -> Found:
        """Every A and AAAA record. The system's resolver has deadlines of its own."""
        del key, timeout_s
        return _found(_addresses(self.endpoint.host, self.endpoint.port))


@dataclass(frozen=True, slots=True)
class ServiceName:
    """The name of an SRV record. Needs `dnspython`."""

    record: str

    @property
    def name(self) -> str:
        """As the operator wrote it."""
        return f"srv+{self.record}"

    def find(self, key: Key, timeout_s: float) -> Found:
        """The addresses of all targets, those of the lowest priority value first."""
        del key
        try:
            import dns.exception
            import dns.resolver
        except ImportError as error:
            raise DiscoveryError("srv+ needs the package dnspython: install it") from error
        try:
            answer = dns.resolver.resolve(self.record, "SRV", lifetime=timeout_s)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return Found()
        except dns.exception.DNSException as error:
            raise DiscoveryError(f"the name servers do not answer: {error}") from error
        records = sorted(answer, key=lambda record: (record.priority, -record.weight))
        targets = [(str(record.target).rstrip("."), record.port) for record in records]
        return _found(
            endpoint
            for host, port in targets[:MOST_CANDIDATES]
            for endpoint in _addresses(host, port)
        )


def _found(endpoints: Iterable[Endpoint]) -> Found:
    known = list(dict.fromkeys(endpoints))[:MOST_CANDIDATES]
    return Found(tuple(Candidate(endpoint) for endpoint in known))


def _addresses(host: str, port: int) -> Iterator[Endpoint]:
    """The addresses of a name; none for one that is not known.

    Raises:
        DiscoveryError: the resolver did not answer.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise DiscoveryError(f"{host} is no host name") from error
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) in (socket.EAI_NONAME, socket.EAI_NODATA):
            return
        raise DiscoveryError(f"{host} cannot be looked up: {cause(error)}") from error
    for _, _, _, _, address in found:
        yield Endpoint(str(address[0]), port)
