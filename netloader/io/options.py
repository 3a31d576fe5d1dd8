"""How a client fills a model: the options of `fill`, checked when they are made."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from netloader.config import (
    LONGEST_S,
    Deadlines,
    Endpoint,
    FolderEndpoint,
    Secret,
    check_rails,
    check_range,
    check_type,
    check_whole,
    texts,
)
from netloader.fsm import digest_choice
from netloader.fsm.terms import MAX_LANES
from netloader.io.cores import default_lanes
from netloader.io.outcome import Attempt
from netloader.io.relay import RelayHost, dialled_at
from netloader.io.securing import Securing
from netloader.io.stopping import CancelToken
from netloader.io.store.digests import ALGORITHMS, check_digest
from netloader.log import Logger, emit, get_logger
from netloader.secure.tls import Tls
from netloader.secure.tokens import Tokens, check_tokens, current

MAX_PARALLEL = 16
"""Sources that one call may ask at the same time."""


@runtime_checkable
class SourceFeed(Protocol):
    """Names sources while a call of `fill` runs, such as `netloader.discovery.lookup.Lookup`."""

    def subscribe(self, found: Callable[[Sequence[Endpoint]], None]) -> Callable[[], None]:
        """Call `found`, from any thread, with sources of which some may be known.

        Returns:
            What ends that; a call that is late is harmless.
        """


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to fill a model. `transports` and `layouts` are in order of preference."""

    transports: tuple[str, ...] = ()
    """None: all that move memory of the device where the weights are to be, the fastest first."""
    layouts: tuple[str, ...] = ("raw",)
    lanes: int = field(default_factory=default_lanes)
    """Data connections to each source, over tcp, each with a thread on both sides. By default 2, or
    1 where only one core may be used."""
    parallel: int = 1
    """Sources that are asked at the same time. 1: in the order given, the next one when one fails.
    With more, each sends a share, and takes a place at its server as long as it does. That pays
    where a single server is slower than the network of the client."""
    token: Tokens = None
    """What a source must know; of several tokens, the first. None: no proof is asked for."""
    tls: Tls | None = None
    """TLS for all connections to sources. Without `transports` it is then tcp alone, because the
    others send weights in the clear."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    report: Callable[[int, int], None] = lambda done, total: None  # noqa: ARG005
    """Called with bytes verified and bytes in all, one call at a time and without a lock, from the
    receiving threads. Each call holds its own lane up, so it must return well within `stall_s`;
    counts that other lanes reach meanwhile are left out, but never the last one. What it raises is
    logged once and ignored."""
    cancel: CancelToken | None = None
    """A `threading.Event`, or whatever has `is_set()`: set it, from any thread, and the call ends
    within a second, with the reason STOPPED."""
    timeout_s: float | None = None
    """Seconds that the whole call may take, whatever `deadlines` allow: afterwards it ends within a
    second, with the reason DEADLINE_PASSED. None: no limit beside `deadlines`."""
    rails: tuple[str, ...] = ()
    """Addresses of this host, one for each network interface: lanes come from one after the other,
    at least one from each. Lane k goes to the k-th address that the source names as its own."""
    relay: RelayHost | None = None
    """A server of this process, as `listen` opens it, that serves each segment from the moment when
    it is verified, and the whole model afterwards."""
    serves_at: Endpoint | str | None = None
    """Where this process will serve what it receives, for the source to name to other clients that
    it has no place for. None: at the endpoint of `relay`, if other hosts can connect to it."""
    digest: str = digest_choice.AUTO
    """The algorithm of the segment digests: `blake3`, `xxh3_128`, or `auto`: BLAKE3 alone with a
    token and a source beyond this host, else the faster where both sides can compute it."""
    feed: SourceFeed | None = None
    """Names further sources while the call runs; they are asked after those that are known."""
    silent: tuple[Attempt, ...] = ()
    """What `describe` has just found out: these sources are not asked again, because one that does
    not answer would cost its deadline twice. The attempts begin the history of the outcome."""
    on_attempt: Callable[[Attempt], None] | None = None
    """Called with each attempt that is over, before the next one begins, and on the thread that
    serves all of them, so it must be quick. What it raises is logged and ignored."""
    logger: Logger = field(default_factory=lambda: get_logger("client"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "transports", texts("transports", self.transports))
        object.__setattr__(self, "layouts", texts("layouts", self.layouts))
        check_whole("lanes", self.lanes, 1, MAX_LANES)
        object.__setattr__(self, "rails", check_rails(self.rails))
        object.__setattr__(self, "lanes", max(self.lanes, len(self.rails)))
        check_whole("parallel", self.parallel, 1, MAX_PARALLEL)
        check_tokens("token", self.token)
        check_type("tls", self.tls, Tls | None, "give a netloader.secure.tls.Tls")
        if self.tls is not None and not self.transports:
            object.__setattr__(self, "transports", ("tcp",))
        check_type("deadlines", self.deadlines, Deadlines, "give a netloader.Deadlines")
        check_type("report", self.report, Callable, "give a callable that takes two integers")
        if isinstance(self.serves_at, str):
            object.__setattr__(self, "serves_at", Endpoint.parse(self.serves_at))
        remedy = "give a netloader.Endpoint or 'host:port'"
        check_type("serves_at", self.serves_at, Endpoint | None, remedy)
        check_type("relay", self.relay, RelayHost | None, "give what netloader.listen returned")
        if self.relay is not None and self.serves_at is None:
            object.__setattr__(self, "serves_at", dialled_at(self.relay.endpoint))
        check_type("cancel", self.cancel, CancelToken | None, "give a threading.Event")
        if self.timeout_s is not None:
            check_range("timeout_s", self.timeout_s, 0.0, LONGEST_S)
        remedy = "give an object with the method `subscribe`"
        check_type("feed", self.feed, SourceFeed | None, remedy)
        check_type("silent", self.silent, tuple | list, "give what `describe` returned")
        for i, attempt in enumerate(self.silent):
            check_type(f"silent[{i}]", attempt, Attempt, "give what `describe` returned")
        remedy = "give a function of one attempt"
        check_type("on_attempt", self.on_attempt, Callable | None, remedy)
        check_type("logger", self.logger, Logger, "give what netloader.log.get_logger returns")
        check_digest(self.digest)

    def over(self, attempt: Attempt) -> None:
        """Call `on_attempt` with an attempt that is over."""
        try:
            if self.on_attempt is not None:
                self.on_attempt(attempt)
        except Exception as error:  # noqa: BLE001 - whatever the callback raises
            emit(self.logger, "netloader.report.failed", exc_info=error)

    def securing(self, source: Endpoint) -> Securing | None:
        """The TLS of connections to a source; None without `tls`, and to folders of this host."""
        if self.tls is None or isinstance(source, FolderEndpoint):
            return None
        return Securing(self.tls, self.deadlines.handshake_s)

    def token_for(self, source: Endpoint) -> Secret | None:
        """The token that a source is asked to know, now: a folder of this host has its own."""
        if isinstance(source, FolderEndpoint):
            return source.token
        return next(iter(current(self.token)), None)

    def digest_algorithms(self, hosts: Iterable[str], held: str = "") -> tuple[str, ...]:
        """What sources on these hosts are asked for; `held` is as in `digest_choice.accepted`."""
        channel = digest_choice.channel_to(self.token, hosts)
        return digest_choice.accepted(self.digest, ALGORITHMS, channel, held)
