"""Options, and how untyped ones are checked. Reads no environment, file or clock."""

import contextlib
import difflib
import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType, UnionType
from typing import Any, Final, Self, TypeAlias

LONGEST_S: Final = 7 * 86_400.0
"""No wait is longer than a week: a longer one is a hang, and some system calls overflow."""

SHOWN_CHARS: Final = 80
"""How much of a refused value an error shows: enough to find it, too little to flood a log."""


class Secret:
    """A text that must not be shown; only `reveal()` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        check_type("the value of a Secret", value, str, "give a text")
        self._value: Final = value

    def reveal(self) -> str:
        """Give the text itself; do not keep, log or format what this returns."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def shown(value: object) -> str:
    """How an error message shows a refused value: its `repr`, capped at SHOWN_CHARS.

    Lists and objects are only counted, because what lies in them may be a secret.
    """
    match value:
        case Mapping():
            return f"an object with {len(value)} fields"
        case list() | tuple():
            return f"a list of {len(value)}"
        case int() if value.bit_length() > 64:
            return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def check_type(name: str, value: object, kind: Any, remedy: str) -> None:
    """Refuse an argument that is not of `kind`; true and false are no numbers.

    Raises TypeError, naming the argument, the type of the value and the remedy. The value itself is
    not shown, because it may be a secret.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is of type {type(value).__name__}; {remedy}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is no number (TypeError) or not within both ends (ValueError)."""
    remedy = f"use a number from {low:g} to {high:g}"
    check_type(name, value, int | float, remedy)
    if not low <= value <= high:  # also false for NaN
        raise ValueError(f"{name} is {shown(value)}; {remedy}")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is no integer (TypeError) or not within both ends (ValueError)."""
    remedy = f"use an integer from {low} to {high}"
    check_type(name, value, int, remedy)
    if not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}; {remedy}")


def texts(name: str, value: object) -> tuple[str, ...]:
    """The texts of a list; a single text is a list of one. TypeError for anything else."""
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        check_type(name, value, list, "give a list of texts")
        return ()
    for i, item in enumerate(items):
        check_type(f"{name}[{i}]", item, str, "give a text")
    return tuple(items)


_V6_AND_PORT = re.compile(r"\[(?P<host>[^\[\]]*:[^\[\]]*)\]:(?P<port>[0-9]{1,9})")
_NAME_AND_PORT = re.compile(r"(?P<host>[^\[\]:]+):(?P<port>[0-9]{1,9})")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_ONLY_NUMBERS = re.compile(r"[0-9.]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer listens: a host name, an IPv4 or an IPv6 address, and a port (1 to 65535).

    Raises ValueError, naming the value and the remedy, for anything that cannot be such a place,
    and TypeError for what is no text and no integer.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        check_type("host", self.host, str, "give a host name or an address as a text")
        check_type("port", self.port, int, "use an integer from 1 to 65535")
        if not _is_host(self.host):
            msg = f"host {shown(self.host)} is no host name, IPv4 or IPv6 address"
            raise ValueError(msg)
        if not 1 <= self.port <= 65535:
            msg = f"port {shown(self.port)} is out of range; use 1 to 65535"
            raise ValueError(msg)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port` or `[IPv6]:port`; ValueError names `text` and says what to write."""
        check_type("endpoint", text, str, "write host:port or [IPv6]:port")
        found = _V6_AND_PORT.fullmatch(text) or _NAME_AND_PORT.fullmatch(text)
        problem = "write host:port or [IPv6]:port"
        if found:
            try:
                return cls(found["host"], int(found["port"]))
            except ValueError as error:
                problem = str(error)
        elif text.count(":") > 1 and (_is_host(text) or _is_host(text.rpartition(":")[0])):
            problem = "put the IPv6 address in brackets: [address]:port"
        msg = f"endpoint {shown(text)}: {problem}"
        raise ValueError(msg)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class FolderEndpoint(Endpoint):
    """Where a process serves a folder of its own host to itself; shown as `file:FOLDER`."""

    folder: str = ""
    token: Secret | None = None
    """What the server of that folder asks for, and only this process knows."""

    def __str__(self) -> str:
        return f"file:{self.folder}"


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Read a network such as `10.1.0.0/16`, or one address.

    Raises ValueError, naming the text and the remedy, for anything else.
    """
    remedy = "write a network such as 10.1.0.0/16 or fd00::/8, or one address"
    with contextlib.suppress(ValueError):
        widest = ipaddress.ip_network(text, strict=False)
        remedy = f"bits of the host are set; write {widest}"
        return ipaddress.ip_network(text)
    raise ValueError(f"{shown(text)} is no network; {remedy}")


def address(text: str) -> str:
    """Read an address of one interface, IPv4 or IPv6.

    Raises ValueError, naming the text and the remedy, for anything else.
    """
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(text)
        if not found.is_unspecified and not found.is_multicast:
            return str(found)
    raise ValueError(f"{shown(text)} is no address; write that of one interface, such as 10.1.0.7")


MAX_RAILS: Final = 16
"""As many as lanes."""


def check_rails(value: object) -> tuple[str, ...]:
    """The addresses of an option `rails`; raises TypeError for what is no list, or ValueError."""
    given = texts("rails", value)
    if len(given) > MAX_RAILS:
        raise ValueError(f"rails are {len(given)}; give at most {MAX_RAILS}")
    try:
        return tuple(map(address, given))
    except ValueError as error:
        raise ValueError(f"rails: {error}") from None


def _is_host(host: str) -> bool:
    """Whether `host` can be dialled; numbers and dots alone must be a whole IPv4 address."""
    if ":" not in host and not _ONLY_NUMBERS.fullmatch(host):
        return _HOST_NAME.fullmatch(host) is not None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return host.isprintable() and " " not in host  # a scope id (%eth0) may hold anything


_SECONDS: Final = (0.001, LONGEST_S)  # less than a millisecond is a typing error
DEADLINE_LIMITS: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "connect_s": _SECONDS,
        "handshake_s": _SECONDS,
        "validate_s": _SECONDS,
        "stall_s": _SECONDS,
        "transfer_base_s": _SECONDS,
        "min_rate_bytes_per_s": (2**20 * 1e-3, 2**20 * 1e6),
        "queue_s": (0.0, LONGEST_S),  # 0: do not wait for a busy source
    }
)
"""What each field of `Deadlines` may be, both ends included."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each phase may take, in seconds; a deadline is for the whole phase, not per read.

    Raises ValueError naming the field when a value is outside DEADLINE_LIMITS, and TypeError when
    it is no number.
    """

    connect_s: float = 5.0
    """TCP answers in a millisecond or never; 5 s survives two lost SYNs (1 s and 3 s)."""
    handshake_s: float = 30.0
    """A few small messages; 30 s lets a host through that is busy loading a model."""
    validate_s: float = 60.0
    """Opening the transport and preparing an offer: a communicator on a busy device needs tens."""
    stall_s: float = 15.0
    """No byte moved: longer than a lossy link's resends, short enough to try the next source."""
    transfer_base_s: float = 60.0
    """What every transfer may take, however small: the slow start of large ones."""
    min_rate_bytes_per_s: float = 50.0 * 2**20
    """Half of gigabit Ethernet: below this an ordinary loader is likely to be faster."""
    queue_s: float = 120.0
    """How long a client waits for sources that answered busy: a few transfers ahead of it."""

    def __post_init__(self) -> None:
        for name, (lowest, highest) in DEADLINE_LIMITS.items():
            check_range(name, getattr(self, name), lowest, highest)

    def transfer_s(self, nbytes: int) -> float:
        """Seconds that a transfer of `nbytes` (0 or more) bytes may take, at most LONGEST_S."""
        return min(self.transfer_base_s + nbytes / self.min_rate_bytes_per_s, LONGEST_S)


_BANDWIDTH = re.compile(r"(?i)(?P<number>[0-9]{1,12}(\.[0-9]{1,9})?) ?(?P<unit>[mg]i?b)(/s)?")
_UNITS: Final = {"mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}
BANDWIDTH_LIMITS: Final = (10**7, 10**12)
"""Bytes a second, both ends included. With less than 10 MB/s an ordinary loader is faster."""


def bandwidth(value: object) -> int:
    """Read bytes a second: an integer, or a text such as `500MB`, `2GB` or `1.5GiB`.

    MB and GB are 10^6 and 10^9 bytes, MiB and GiB 2^20 and 2^30; `/s` may follow. Raises ValueError
    with the value and the remedy for anything else, and for what is outside BANDWIDTH_LIMITS.
    """
    low, high = BANDWIDTH_LIMITS
    rate = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if isinstance(value, str) and (found := _BANDWIDTH.fullmatch(value.strip())):
        rate = round(float(found["number"]) * _UNITS[found["unit"].lower()])
    if low <= rate <= high:
        return rate
    remedy = "give bytes per second, such as 500MB, 2GB or 1.5GiB, from 10MB to 1000GB"
    raise ValueError(f"{shown(value)} cannot be used; {remedy}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands, such as `SOURCE[1].sources[0]`, and where its problems are noted."""

    path: str
    problems: list[str]

    def inside(self, part: str) -> Self:
        """Return the place `part` (".name" or "[0]") inside this one."""
        return type(self)(self.path + part, self.problems)

    def refuse(self, value: object, remedy: str) -> None:
        """Note that `value` (None: nothing) cannot stand here, and what to do about it."""
        match value:
            case None:
                what = " is missing"
            case Secret():
                what = ": the value, which is not shown, cannot be used"
            case _:
                what = f": {shown(value)} cannot be used"
        self.problems.append(f"{self.path}{what}; {remedy}")

    def refuse_unknown(self, keys: Collection[object], names: Collection[str]) -> None:
        """Note every key that is none of `names`, with the name it resembles; never its value."""
        folded = {name.upper(): name for name in names}
        for key in (key for key in keys if key not in names):
            close = difflib.get_close_matches(str(key)[:SHOWN_CHARS].upper(), folded, n=1)
            hint = f"did you mean {folded[close[0]]}?" if close else f"known: {', '.join(names)}"
            self.problems.append(f"{self.path}: there is no field {shown(key)}; {hint}")


Reader: TypeAlias = Callable[[Place, Any], Any]
"""Turns a value from outside into an option, or notes its problems and returns a placeholder."""


def one(
    kind: type | UnionType,
    good: Callable[[Any], object],
    remedy: str,
    turn: Callable[[Any], object] = lambda value: value,
) -> Reader:
    """Read a value of `kind` (true and false are no numbers) that is `good`, as `turn` has it."""

    def read(at: Place, value: object) -> object:
        if isinstance(value, kind) and not isinstance(value, bool) and good(value):
            return turn(value)
        at.refuse(value, remedy)
        return None

    return read


text_line: Final = one(
    str, lambda t: t.strip() and t.isprintable(), "give one line of text, not empty"
)
"""Read a text without control characters."""


def whole(low: int, high: int) -> Reader:
    """Read an integer, both ends included."""
    return one(int, lambda n: low <= n <= high, f"give an integer from {low} to {high}")


def number(low: float, high: float, unit: float = 1.0) -> Reader:
    """Read a number, both ends included and given in units of the option: `unit` converts it."""
    low, high = low / unit, high / unit
    good = f"give a number from {low:g} to {high:g}"
    return one(int | float, lambda n: low <= n <= high, good, lambda n: n * unit)


def choice(*members: Enum) -> Reader:
    """Read the value of one of these members, in any case."""
    known = {str(member.value): member for member in members}
    good = f"give one of {', '.join(known)}"
    return one(str, lambda t: t.lower() in known, good, lambda t: known[t.lower()])


def each(read: Reader) -> Reader:
    """Read a list whose items `read` reads."""

    def reader(at: Place, value: object) -> tuple[Any, ...]:
        if isinstance(value, list | tuple):
            return tuple(read(at.inside(f"[{i}]"), item) for i, item in enumerate(value))
        at.refuse(value, "give a list, even of one")
        return ()

    return reader
