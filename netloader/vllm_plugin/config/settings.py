"""The fields of `--model-loader-extra-config`: one row per field; all problems at once.

Reads the files that fields may name (CONFIG_FILE, AUTH_TOKEN_FILE). A field that is null
counts as absent. No error shows a secret, nor what might be one, such as a token written where
the path of its file belongs.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

from netloader.config import (
    DEADLINE_LIMITS,
    Deadlines,
    Place,
    Reader,
    choice,
    each,
    number,
    shown,
    text_line,
    whole,
)
from netloader.discovery.urls import FinderSpec
from netloader.errors import ConfigError
from netloader.fsm import digest_choice
from netloader.secure.tls import Tls
from netloader.secure.tokens import MIN_CHARS, TokenFile
from netloader.vllm_plugin.config import secure
from netloader.vllm_plugin.config.readers import (
    Fallback,
    bytes_per_s,
    choice_of_digest,
    fallback,
    file_text,
    folder,
    port,
    rails,
    switch,
)
from netloader.vllm_plugin.config.sources import Source, publish, registry_in, sources

AUTO: Final = "auto"
"""The TRANSPORT that means: what suits the device."""

RELAYED_OVER: Final = ("tcp",)
"""The transports to clients of a relay. A process group would need a second communicator on the
device, beside the one that receives."""

HANDED_ON: Final = ("enable_multithread_load", "num_threads", "enable_weights_track")
"""Fields of vLLM's ordinary loader. Operators of vllm-ascend's netloader give them next to its own,
and it hands them to the loader that takes over; so does this one."""


class LayoutChoice(Enum):
    """In which form weights are offered: as they were loaded, or as the kernels use them."""

    AUTO = "auto"
    RAW = "raw"
    PROCESSED = "processed"


class CachePolicy(Enum):
    """Where the original of a parameter that post-processing replaced is kept."""

    HBM = "hbm"
    DRAM = "dram"
    NO = "no"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where the originals of parameters are kept for the raw layout, and how they are cut."""

    int8: CachePolicy
    int8_names: tuple[str, ...]
    """Parts of the names that `int8` applies to; empty: all."""
    others: CachePolicy
    segment_bytes: int
    digest: str = digest_choice.AUTO
    token: TokenFile | None = None
    """With `digest`, it decides how they are digested."""

    def others_on(self, device_type: str) -> CachePolicy:
        """`others` on a device, where `auto` is one of the other policies.

        It is `dram` on a CPU, where it costs only what is replaced, and `no` on a device, where all
        of a model would be copied to the host before it is known what is replaced: there the
        processed layout serves instead.
        """
        if self.others is not CachePolicy.AUTO:
            return self.others
        return CachePolicy.DRAM if device_type == "cpu" else CachePolicy.NO


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator asked for; FIELDS says what each means. Made by `parse` only."""

    sources: Mapping[int, tuple[Source, ...]]
    """By rank, or for `EVERY_RANK`."""
    model: str | None
    listen_port: int | None
    int8_cache: CachePolicy
    int8_cache_name: tuple[str, ...]
    output_prefix: str | None
    config_file: str | None
    transport: str
    listen_host: str | None
    allow: tuple[str, ...]
    rails: tuple[str, ...]
    weight_cache: CachePolicy
    layout: LayoutChoice
    publish: FinderSpec | None
    discovery_timeout_s: float
    first_timeout_s: float
    agree_timeout_s: float
    fallback: Fallback | None
    standby: bool
    caches: bool
    save: Path | None
    max_clients: int
    max_bandwidth: int | None
    max_bandwidth_busy: int | None
    token: TokenFile | None
    tls: Tls | None
    parallel: int
    relay: bool
    lanes: int | None
    segment_mib: int
    digest: str
    deadlines: Deadlines
    log_json: str | None
    metrics_port: int | None

    @property
    def transports(self) -> tuple[str, ...]:
        """What may be used, to clients and from sources; none named: all that suit the device.

        With TLS that is tcp alone: see `ClientOptions.tls`.
        """
        return () if self.transport == AUTO else (self.transport,)

    @property
    def registry(self) -> FinderSpec | None:
        """Where servers publish themselves; None for nowhere."""
        return registry_in(self.sources, self.publish)

    @property
    def keeping(self) -> Keeping:
        """How originals are kept."""
        segment_bytes = self.segment_mib << 20
        kept = (self.int8_cache, self.int8_cache_name, self.weight_cache)
        return Keeping(*kept, segment_bytes, self.digest, self.token)

    @property
    def keeping_at_load(self) -> Keeping | None:
        """The same; None where the raw layout is not wanted, and loading keeps nothing for it."""
        return None if self.layout is LayoutChoice.PROCESSED else self.keeping

    @classmethod
    def parse(
        cls,
        extra: Mapping[str, object] | None,
        further: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: (),
    ) -> Self:
        """Read the extra config as vLLM hands it over; ConfigError lists every problem.

        `further` finds problems that take more than reading, in what was read: options by
        attribute, None where one is absent or could not be read.
        """
        problems: list[str] = []
        given = _given({} if extra is None else extra, problems)
        values: dict[str, Any] = {}
        for row in FIELDS:
            at, value = given.get(row.name, (Place(row.name, problems), row.default))
            option = None if value is None else row.read(at, value)
            values[row.attribute or row.name.lower()] = option
        files = [values.pop(name) for name in ("tls_cert", "tls_key", "tls_ca")]
        values["tls"] = secure.tls(Place("TLS_CERT", problems), *files)
        problems.extend(further(values))
        if problems:
            raise ConfigError(problems)
        handed = {name: values.pop(name) for name in HANDED_ON}
        values["fallback"] = _handed_on(values["fallback"], handed)
        limits = {limit.name: values.pop(limit.name) for limit in fields(Deadlines)}
        return cls(deadlines=Deadlines(**limits), **values)


def _handed_on(fallback: Fallback | None, given: Mapping[str, object]) -> Fallback | None:
    """The loader that takes over, with what was given for it; what FALLBACK itself says wins."""
    if fallback is None:
        return None
    told = {name: value for name, value in given.items() if value is not None}
    return Fallback(fallback.load_format, {**told, **fallback.extra})


def _json(at: Place, path: object) -> object:
    """What CONFIG_FILE holds; no fields at all after noting a problem."""
    try:
        text = file_text(at, path, path)
        return {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        at.refuse(path, f"the file is no JSON: {error}")
        return {}


def _given(extra: object, problems: list[str]) -> dict[str, tuple[Place, object]]:
    """Where each given field stands, and its value; CONFIG_FILE's lie over the inline ones."""
    inline = _layer(Place("model_loader_extra_config", problems), extra, "")
    if "CONFIG_FILE" not in inline:
        return inline
    at, path = inline["CONFIG_FILE"]
    where = f"CONFIG_FILE {shown(path)}"
    above = _layer(Place(where, problems), _json(at, path), f"{where}: ")
    if "CONFIG_FILE" in above:
        nested, inner = above.pop("CONFIG_FILE")
        nested.refuse(inner, "a CONFIG_FILE cannot name another one")
    return {**inline, **above}


def _layer(at: Place, holder: object, prefix: str) -> dict[str, tuple[Place, object]]:
    if not isinstance(holder, Mapping):
        at.refuse("null" if holder is None else holder, "give a JSON object of fields")
        return {}
    names = [row.name for row in FIELDS]
    at.refuse_unknown(holder, names)
    known = [name for name in names if holder.get(name) is not None]
    return {name: (Place(prefix + name, at.problems), holder[name]) for name in known}


@dataclass(frozen=True, slots=True)
class Field:
    """One row: a field, how it is read, and the default, as one would write it."""

    name: str
    read: Reader
    type: str
    default: object
    meaning: str
    attribute: str = ""
    """Where Settings or Deadlines has it; empty: the name in lower case."""


def _deadline(name: str, attribute: str, meaning: str, unit: float = 1.0) -> Field:
    read = number(*DEADLINE_LIMITS[attribute], unit)
    default = getattr(Deadlines(), attribute) / unit
    return Field(name, read, "number", default, meaning, attribute)


# fmt: off
FIELDS: Final = (
    Field("SOURCE", sources, "list or string", [],
          '`[{"device_id": 0, "sources": ["10.170.22.152:19374"]}, ...]`: each rank and its '
          "sources, tried in order: `host:port`, `[IPv6]:port`, where to look them up, see "
          "[discovery](discovery.md), or `file:/path` of [a folder](own-disk.md). One string, or a "
          "list of strings: the same for every rank, such as the `host:LISTEN_PORT` of an "
          "instance. Empty: the ordinary loader", "sources"),
    Field("MODEL", text_line, "string", None,
          "model name compared between client and server; default: `--model`"),
    Field("LISTEN_PORT", port, "integer", None,
          "the port is `LISTEN_PORT + RANK`, and all ranks of a host are found at `LISTEN_PORT`; "
          "absent: a free one; outside 1024-65535: no listener"),
    Field("INT8_CACHE", choice(CachePolicy.HBM, CachePolicy.DRAM, CachePolicy.NO),
          "`hbm`, `dram`, `no`", "no",
          "keep the original int8 parameters of quantized models on the device, in DRAM, or not"),
    Field("INT8_CACHE_NAME", each(text_line), "list of strings", [],
          "parts of the parameter names that `INT8_CACHE` applies to; empty: all"),
    Field("OUTPUT_PREFIX", text_line, "string", None,
          "each rank writes its `IP:Port` to `{OUTPUT_PREFIX}{RANK}.txt`"),
    Field("CONFIG_FILE", lambda _, path: path, "string", None,  # read before the rows, by _given
          "JSON file with the same fields; what it says wins over the inline fields"),
    Field("TRANSPORT", text_line, "string", AUTO,
          "how bytes move, to clients and from sources: `auto` (what suits the device: hccl, nccl, "
          "on a CPU `shm` within a host, else tcp), `tcp`, `gloo`, `hccl`, `nccl`, `shm` (on one "
          "host, as one user), "
          "`nixl`, `mooncake` ([engines](engines.md)), "
          "or the name of a registered transport"),
    Field("LISTEN_HOST", text_line, "string", None,
          "address to listen at; absent: the one that is told to others; `*`: all of them"),
    Field("ALLOW", secure.networks, "list of strings", [],
          "networks of the hosts that may connect, such as `10.1.0.0/16`; empty: every host"),
    Field("RAILS", rails, "list of strings", [],
          "addresses of this host, one for each network interface: a server names them to its "
          "clients, and lanes are spread over those of both; needs `LISTEN_HOST` `*`"),
    Field("WEIGHT_CACHE", choice(*CachePolicy), "`hbm`, `dram`, `no`, `auto`", "auto",
          "as `INT8_CACHE`, for any other parameter that post-processing replaces"),
    Field("LAYOUT", choice(*LayoutChoice), "`auto`, `raw`, `processed`", "auto",
          "offer weights as they were loaded, or as the kernels use them; `auto`: as loaded, or "
          "else as used, except on a CPU, whose kernels hide them"),
    Field("FALLBACK", fallback, "string or object", "auto",
          "load format when no source works, or `never`, or "
          '`{"load_format": "...", "model_loader_extra_config": {...}}`'),
    Field("STANDBY", switch, "boolean", False,
          "start with placeholders, wait, and receive the weights in place: on `netloader fill`, "
          "or when a source that is looked up appears; `FALLBACK` is not used, see "
          "[standby](standby.md)"),
    Field("CACHES", switch, "boolean", False,
          "take over from the source what an engine computes at its start (compiled code, the size "
          "of the KV cache), and offer it: see [caches](caches.md); compiled code needs "
          "`AUTH_TOKEN_FILE` or TLS"),
    Field("SAVE", folder, "string", None,
          "folder where each rank saves, after its start, the weights that it serves; "
          "`file:FOLDER` in `SOURCE` reads them at the next start, see [own disk](own-disk.md)"),
    Field("MAX_CLIENTS", whole(1, 2**31 - 1), "integer", 2,
          "clients served at once; others are told when to come back"),
    Field("MAX_BANDWIDTH", bytes_per_s, "string or integer", None,
          "bytes per second that a rank sends to all its clients together, such as `500MB`, `2GB` "
          "or `1.5GiB`; they share it evenly; absent: no limit"),
    Field("MAX_BANDWIDTH_BUSY", bytes_per_s, "string or integer", None,
          "the same while the engine computes, and for a quarter of a second after each step; "
          "absent: as at any time"),
    Field("AUTH_TOKEN_FILE", secure.tokens, "string", None,
          f"file with tokens of {MIN_CHARS} characters or more, one a line, read again when it has "
          "changed: clients must know one of them, sources the first; absent: no proof is wanted",
          "token"),
    Field("TLS_CERT", text_line, "string", None,
          "PEM file with the certificate of this instance and its chain; set: all connections have "
          "TLS, and `TRANSPORT: auto` means tcp"),
    Field("TLS_KEY", secure.key_path, "string", None,
          "PEM file with its private key, without a password; absent: it is in `TLS_CERT`"),
    Field("TLS_CA", text_line, "string", None,
          "PEM file with the authorities of sources and of clients, which then need a certificate; "
          "absent: those of the system, and clients need none"),
    Field("PARALLEL", whole(1, 16), "integer, 1-16", 1,
          "sources that are asked at the same time; each sends a share"),
    Field("RELAY", switch, "boolean", False,
          "serve each segment as soon as it is received, over tcp, until post-processing begins"),
    Field("LANES", whole(1, 16), "integer, 1-16", None,
          "parallel connections of one TCP transfer; absent: 2, or 1 where one core is usable"),
    Field("SEGMENT_MIB", whole(1, 1024), "integer, 1-1024", 64,
          "MiB that are sent, verified and resumed as one"),
    Field("DIGEST", choice_of_digest, "`auto`, `blake3`, `xxh3_128`", digest_choice.AUTO,
          "how segments are verified; `auto`: blake3 with a token on a network, else xxh3_128 "
          "where both sides have it, see [security](security.md)"),
    _deadline("CONNECT_TIMEOUT_S", "connect_s", "seconds to reach a source"),
    _deadline("HANDSHAKE_TIMEOUT_S", "handshake_s", "seconds for the handshake"),
    _deadline("VALIDATE_TIMEOUT_S", "validate_s",
              "seconds to compare the models and make the transport ready"),
    _deadline("STALL_TIMEOUT_S", "stall_s", "seconds without one byte that end a transfer"),
    _deadline("TRANSFER_TIMEOUT_S", "transfer_base_s",
              "seconds any transfer may take, beside its bytes / `MIN_RATE_MIB_S`"),
    _deadline("MIN_RATE_MIB_S", "min_rate_bytes_per_s",
              "MiB per second; a transfer slower than this is given up", 2.0**20),
    _deadline("QUEUE_TIMEOUT_S", "queue_s", "seconds to wait for busy sources; 0: do not wait"),
    Field("PUBLISH", publish, "string", None,
          "registry where a rank publishes itself while it serves: `redis://host:port/prefix`, "
          "`etcd://host:port/prefix`, `ray://namespace/actor`, or `no`; absent: the registry that "
          "`SOURCE` names for every rank"),
    Field("DISCOVERY_TIMEOUT_S", number(0.1, 600, 1.0), "number", 5,
          "seconds that a start waits for an answer where it looks sources up"),
    Field("FIRST_TIMEOUT_S", number(0, 86400, 1.0), "number", 300,
          "seconds to wait for another instance with the same registry that has begun to load the "
          "model, where none serves it yet; 0: load at once"),
    Field("AGREE_TIMEOUT_S", number(1, 86400, 1.0), "number", 600,
          "seconds the ranks of an instance wait for each other: before a `FALLBACK` that uses "
          "collectives, and in each step of filling an instance on standby"),
    Field("enable_multithread_load", switch, "boolean", None,
          "for the loader of `FALLBACK`, as vLLM's: read the files of the checkpoint in threads"),
    Field("num_threads", whole(1, 2**31 - 1), "integer", None, "for the same: how many threads"),
    Field("enable_weights_track", switch, "boolean", None,
          "for the same: check that each parameter was loaded"),
    Field("LOG_JSON", text_line, "string", None,
          "path, or `stderr`: write each log line there as one JSON object"),
    Field("METRICS_PORT", whole(0, 65535), "integer, 0-65535", None,
          "a page of metrics at `METRICS_PORT + RANK`, on all addresses; absent or 0: none"),
)
# fmt: on
"""Every field there is."""


def render_fields() -> str:
    """FIELDS as a Markdown table."""
    lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for row in FIELDS:
        default = "" if row.default is None else f"`{json.dumps(row.default)}`"
        lines.append(f"| `{row.name}` | {row.type} | {default} | {row.meaning} |")
    return "\n".join(lines) + "\n"
