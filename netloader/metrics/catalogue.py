"""Every series of netloader: name, labels and meaning, from which docs/operate/metrics.md is."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

OTHER: Final = "other"
"""The value of a label for whatever is not known beforehand, such as what a peer wrote."""


class Kind(Enum):
    """What a series does."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Series:
    """One metric; `name` as it is scraped, without what a histogram appends."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


SESSIONS: Final = "netloader_sessions_total"
OPEN: Final = "netloader_sessions_open"
IN_PHASE: Final = "netloader_sessions_in_phase"
QUEUED: Final = "netloader_clients_queued"
BYTES: Final = "netloader_bytes_total"
RATE: Final = "netloader_rate_bytes_per_second"
PHASES: Final = "netloader_phase_seconds"
LOADS: Final = "netloader_loads_total"
FALLBACKS: Final = "netloader_fallbacks_total"
ATTEMPTS: Final = "netloader_source_attempts_total"
WAITS: Final = "netloader_source_waits_total"
DIFFERENCES: Final = "netloader_differences_total"
REFUSED: Final = "netloader_connections_refused_total"
DIGEST_FAILURES: Final = "netloader_digest_failures_total"
VIOLATIONS: Final = "netloader_violations_total"
IN_USE: Final = "netloader_source_in_use"
OFFERED: Final = "netloader_offered"
OFFERED_BYTES: Final = "netloader_offered_bytes"
CACHE_BYTES: Final = "netloader_cache_bytes"
STANDBY: Final = "netloader_standby"
LISTENING: Final = "netloader_listening"
PROBLEMS: Final = "netloader_problems_total"

CATALOGUE: Final = tuple(
    Series(name, Kind(kind), labels, meaning)
    for name, kind, labels, meaning in (
        (SESSIONS, "counter", ("side", "outcome", "reason"),
         "Sessions that are over; `reason` is a word of the protocol's reasons."),
        (OPEN, "gauge", ("side",), "Sessions that are not over yet, those that wait included."),
        (IN_PHASE, "gauge", ("side", "phase"), ("Sessions by the phase that they are in now; those "
         "of a server in `transfer` are the clients that it feeds.")),
        (QUEUED, "gauge", (), ("Loads of this process that wait now because their sources are busy "
         "or not ready; the sum over all instances is the queue.")),
        (BYTES, "counter", ("side",), ("Bytes of finished requests, received by a client or "
         "sent by a server.")),
        (RATE, "gauge", ("side",), ("Bytes a second now: of the last second, 0 when no session is "
         "open. Not what a client takes itself from its server's memory (`shm`, RDMA).")),
        (PHASES, "histogram", ("side", "phase"), "Seconds that a session spent in a phase."),
        (LOADS, "counter", ("way",), ("Loads of a model in vLLM: `received` from a source, "
         "`ordinary` because no source is named, `fallback` because none delivered.")),
        (FALLBACKS, "counter", ("reason",), "Loads that no source delivered, by reason."),
        (ATTEMPTS, "counter", ("source", "again"), ("Sessions that a client began with a source; "
         "`again` is `yes` for those after the first one of a load.")),
        (WAITS, "counter", (), "Times that a client waited because its sources were busy."),
        (DIFFERENCES, "counter", ("side", "field"), ("Refused sessions, by the field of the "
         "identity that differs.")),
        (REFUSED, "counter", ("why",), ("Peers that a server closed before they said "
         "anything: `tls` without a valid certificate or TLS at all, `network` outside `ALLOW`.")),
        (DIGEST_FAILURES, "counter", ("side",), ("Sessions that ended because bytes did not match "
         "their digest.")),
        (VIOLATIONS, "counter", ("side",), "Peers that broke the protocol."),
        (IN_USE, "gauge", ("source",), "1 for the source that this process has its weights from."),
        (OFFERED, "gauge", ("role",), "1 while weights are offered; 0 when they were withdrawn."),
        (OFFERED_BYTES, "gauge", ("role",), "Bytes of the weights that were offered last."),
        (CACHE_BYTES, "gauge", ("role",), "Bytes of original weights that are kept to be offered."),
        (STANDBY, "gauge", (), "1 while a rank on standby waits for its weights, then 0."),
        (LISTENING, "gauge", (), "Ports at which this process serves."),
        (PROBLEMS, "counter", ("event",), "Log records that ask for an operator, by event."),
    )
)  # fmt: skip

PHASE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


def render_series() -> str:
    """CATALOGUE as a Markdown table."""
    lines = ["| series | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for each in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind.value} | {labels} | {each.meaning} |")
    return "\n".join(lines) + "\n"
