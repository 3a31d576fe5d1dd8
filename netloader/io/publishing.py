"""How weights are published: the options of a server, and what they make of a model."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from netloader.config import (
    Deadlines,
    bandwidth,
    check_rails,
    check_type,
    check_whole,
    network,
    texts,
)
from netloader.errors import WeightsError
from netloader.fsm import digest_choice
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import (
    MIN_SEGMENT_BYTES,
    Progress,
    segment_count,
    suitable_segment_bytes,
)
from netloader.fsm.messages import Offer
from netloader.fsm.terms import CatalogEntry, Sibling
from netloader.io.arguments import Weights, texts_by_name
from netloader.io.catalog import Catalog
from netloader.io.pacing import Rates
from netloader.io.published import PublishedModel, withdraw_only
from netloader.io.snapshot import OnSession
from netloader.io.store.base import Store
from netloader.io.store.digests import check_digest, published_with
from netloader.io.transports import suited
from netloader.io.usage import Usage
from netloader.io.watch import watched
from netloader.log import Logger, emit, get_logger
from netloader.secure.tls import Tls
from netloader.secure.tokens import Tokens, check_tokens, current
from netloader.wire.frames import sendable

MOST_SEGMENT_BYTES = 1 << 40
"""More than any device holds: a whole model in one segment."""
MOST_CLIENTS = (1 << 31) - 1
"""No limit in practice."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve. `transports` and `layouts` name what clients may choose from."""

    transports: tuple[str, ...] = ()
    """None: all that move memory of the device where the weights are."""
    layouts: tuple[str, ...] = ("raw",)
    segment_bytes: int | None = None
    """None: a 256th of the model, in whole MiB, but at least 1 and at most 64 MiB."""
    max_clients: int = 2
    max_bandwidth: int | str | None = None
    """Bytes a second that this server sends, to all its clients together: an integer, or a text
    such as `500MB`, `2GB` (10^6, 10^9 bytes), `512MiB` or `1.5GiB` (2^20, 2^30). The clients share
    it evenly. Transports that cannot keep to it, such as `shm`, are not offered. None: no limit."""
    busy_bandwidth: int | str | None = None
    """The same for the time in which `busy` answers true; the lower limit counts then."""
    busy: Callable[[], bool] | None = None
    """Whether whatever shares this host with the server has work at this moment. It is called for
    each step that is sent, from any thread, so it must be quick and must not raise."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a client may ask before it builds its model."""
    token: Tokens = None
    """What clients must know; of several tokens, any. None: no proof is asked for."""
    allow: tuple[str, ...] = ()
    """Networks of peers that may connect, such as `10.1.0.0/16`; none: every peer may. Others are
    closed before anything is read. A client on the same host has the address that it dials."""
    rails: tuple[str, ...] = ()
    """Addresses of this host, one for each network interface, over which clients spread their lanes
    (tcp). The server must listen at every address; each must lead clients to this host."""
    tls: Tls | None = None
    """TLS for all connections of this server. Without `transports` it is then tcp alone, because
    the others send weights in the clear."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    logger: Logger = field(default_factory=lambda: get_logger("server"))
    digest: str = digest_choice.AUTO
    """The algorithm of the segment digests: `blake3`, `xxh3_128`, or `auto`: with a token BLAKE3
    first, without one the faster; the other for clients that ask for it. See `digest_choice`."""
    siblings: Callable[[], tuple[Sibling, ...]] = tuple
    """Returns the models that other servers on this host offer now: a client that asks for one of
    them is referred to its port. Called for each connection, so it must be quick."""
    on_session: OnSession | None = None
    """Called with the record of each session that has chosen a model and is over, on a thread of
    its own and without a lock. What it raises is logged, and affects no session."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "transports", texts("transports", self.transports))
        object.__setattr__(self, "layouts", texts("layouts", self.layouts))
        if (cut := self.segment_bytes) is not None:
            check_whole("segment_bytes", cut, MIN_SEGMENT_BYTES, MOST_SEGMENT_BYTES)
        check_whole("max_clients", self.max_clients, 1, MOST_CLIENTS)
        check_type("busy", self.busy, Callable | None, "give a function without arguments")
        check_type("siblings", self.siblings, Callable, "give a function without arguments")
        if (self.busy is None) != (self.busy_bandwidth is None):
            raise ValueError("busy_bandwidth and busy need each other; give both, or neither")
        slowest = self.rates.lowest
        object.__setattr__(self, "allow", texts("allow", self.allow))
        for i, text in enumerate(self.allow):
            _check_network(f"allow[{i}]", text)
        object.__setattr__(self, "rails", check_rails(self.rails))
        texts_by_name("facts", self.facts, "{'quantization': 'w8a8'}")
        check_tokens("token", self.token)
        check_type("tls", self.tls, Tls | None, "give a netloader.secure.tls.Tls")
        if self.tls is not None and not self.tls.serves:
            raise ValueError("tls has no certificate; a server needs one")
        if self.tls is not None and not self.transports:
            object.__setattr__(self, "transports", ("tcp",))
        check_type("deadlines", self.deadlines, Deadlines, "give a netloader.Deadlines")
        least = self.deadlines.min_rate_bytes_per_s
        if slowest is not None and (why := too_slow(slowest, self.max_clients, least)):
            field_name = "max_bandwidth" if slowest == self.rates.always else "busy_bandwidth"
            raise ValueError(f"{field_name}: {why}")
        remedy = "give a function of one record"
        check_type("on_session", self.on_session, Callable | None, remedy)
        check_type("logger", self.logger, Logger, "give what netloader.log.get_logger returns")
        check_digest(self.digest)

    @property
    def digest_algorithms(self) -> tuple[str, ...]:
        """What clients may choose from; weights are published with the first."""
        return published_with(self.digest, self.token)

    @property
    def rates(self) -> Rates:
        """What `max_bandwidth` and `busy_bandwidth` say, as numbers."""
        always = _bytes_per_s("max_bandwidth", self.max_bandwidth)
        busy = _bytes_per_s("busy_bandwidth", self.busy_bandwidth)
        return Rates(always, busy, self.busy) if self.busy else Rates(always)


def _bytes_per_s(name: str, given: int | str | None) -> int | None:
    if given is None:
        return None
    try:
        return bandwidth(given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def too_slow(rate: int, clients: int, least: float) -> str:
    """Why a rate is too low for so many clients at once; empty if it is not.

    A transfer that is slower than `least`, the `min_rate_bytes_per_s` of deadlines, is given up.
    """
    if rate >= clients * least:
        return ""
    return (
        f"the share of each of {clients} clients is {rate / clients / 2**20:.3g} MiB/s, below the "
        f"minimum rate of a transfer, {least / 2**20:.3g} MiB/s; raise it, or lower the number of "
        "clients, or lower the minimum rate here and on the clients"
    )


def _check_network(name: str, text: str) -> None:
    try:
        network(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def publish(
    weights: Store,
    identity: Identity,
    options: ServerOptions,
    usage: Usage | None = None,
    on_change: Callable[[PublishedModel, str], bool] = withdraw_only,
) -> PublishedModel:
    """Describe weights for clients; digests are not sealed yet.

    `usage` and `on_change` are as in `PublishedModel`.

    Raises:
        WeightsError: there are no bytes to serve.
    """
    owner = (usage, on_change, options.logger, options.on_session)
    return PublishedModel(weights, _entry(weights, identity, options), options.max_clients, *owner)


def publish_verified(
    weights: Store, identity: Identity, options: ServerOptions, proof: Progress
) -> PublishedModel:
    """Publish weights that were verified when they were written down, by the digests of then.

    Nothing is read before a client asks for it. A client compares what it receives with these
    digests, so it takes nothing that has changed since; after its refusal all is compared here.

    Raises:
        WeightsError: there are no bytes to serve, or the digests are of other segments.
    """
    plain = _entry(weights, identity, replace(options, segment_bytes=proof.segment_bytes))
    first = proof.digest_algorithm
    entry = replace(
        plain, digest_algorithms=tuple(dict.fromkeys((first, *plain.digest_algorithms)))
    )
    if len(proof.segment_digests) != segment_count(weights.manifest.nbytes, entry.segment_bytes):
        raise WeightsError("the digests are of other segments; copy the weights again")
    owner = (None, withdraw_only, options.logger, options.on_session)
    published = PublishedModel(weights, entry, options.max_clients, *owner)
    published.seal(proof.segment_digests)
    return published


def _entry(weights: Store, identity: Identity, options: ServerOptions) -> CatalogEntry:
    if not weights.manifest.nbytes:
        raise WeightsError("the model has no bytes to serve")
    return CatalogEntry(
        identity=sendable(identity),
        manifest=weights.manifest,
        segment_bytes=options.segment_bytes or suitable_segment_bytes(weights.manifest.nbytes),
        layouts=options.layouts,
        transports=options.transports or suited(weights.device.type, options.logger),
        digest_algorithms=options.digest_algorithms,
        facts=options.facts,
        tokens=current(options.token),
    )


def publish_received(
    store: Store, identity: Identity, offer: Offer, options: ServerOptions
) -> PublishedModel:
    """Describe a store that is being filled, as the offer describes what fills it.

    No segment of it is available yet: see `PublishedModel.have`.

    Raises:
        ValueError: no transport can send what is in this store.
    """
    first = offer.digest_algorithm
    entry = CatalogEntry(
        identity=sendable(identity),
        manifest=offer.manifest or store.manifest,
        segment_bytes=offer.segment_bytes,
        layouts=(offer.layout,),
        transports=options.transports or suited(store.device.type, options.logger),
        digest_algorithms=tuple(dict.fromkeys((first, *options.digest_algorithms))),
        facts=options.facts,
        tokens=current(options.token),
    )
    owner = (None, withdraw_only, options.logger, options.on_session)
    published = PublishedModel(store, entry, options.max_clients, *owner)
    published.receive(offer.segment_digests)
    return published


class Home:
    """Where a server publishes: a weak reference, as published models in the catalog hold it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog: Callable[[], Catalog | None] = weakref.ref(catalog)


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """Weights in a catalog, published anew whenever they are found to be changed.

    A store is withdrawn then: its bytes are those of a file, or were verified.
    """

    weights: Weights
    identity: Identity
    options: ServerOptions
    home: Home

    def publish(self) -> PublishedModel:
        """Publish what is there now."""
        store, usage = watched(self.weights)
        on_change = withdraw_only if usage is None else self.renew
        return publish(store, self.identity, self.options, usage, on_change)

    def watch(self, published: PublishedModel) -> None:
        """Watch what was received here, and is in use from now on."""
        _, usage = watched(self.weights)
        published.watch(usage, withdraw_only if usage is None else self.renew)

    def renew(self, old: PublishedModel, why: str) -> bool:
        """Offer what is there now in the place of what was."""
        fields = {"netloader.role": old.entry.role, "netloader.detail": why}
        emit(self.options.logger, "netloader.server.withdrawn", fields)
        catalog = self.home.catalog()
        try:
            new = self.publish()
        except Exception as error:  # noqa: BLE001 - the module's own code runs here
            old.withdraw(f"{why}, and the model cannot be served any more: {error}")
            return False
        if catalog is None:
            return False
        if catalog.replace(old, new):
            new.seal_quietly()
        return True
