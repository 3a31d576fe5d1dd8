"""The situations of the tour, and what is to be seen in each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

CLIENT_LOG, SERVER_LOG = "The client's log", "The server's log"
CLIENT_PAGE, SERVER_PAGE = (
    "The client's page of metrics",
    "The server's page of metrics: what changed",
)
ALERTS: Final = "Alerts that fire now and did not before"
VIEWS: Final = (CLIENT_LOG, SERVER_LOG, CLIENT_PAGE, SERVER_PAGE, ALERTS)


@dataclass(frozen=True, slots=True)
class Situation:
    """One client, and what its operator sees."""

    name: str
    title: str
    story: str
    expected: Mapping[str, tuple[str, ...]]
    """By view: patterns, each of which must match a line."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What is not as for the others."""
    other_model: bool = False
    expired: bool = False
    killed: bool = False
    healthy: bool = False
    """Whether the engine must serve in the end, rather than have begun to load its files."""
    meaning: str = ""


def situations(wrong_token: str) -> tuple[Situation, ...]:
    """All of them, in the order of the tour."""
    return (GOOD, KILLED, _wrong(wrong_token), EXPIRED, OTHER)


GOOD: Final = Situation(
    name="good",
    title="A client that fits",
    story="It knows the registry, has the token of the fleet and a certificate of its authority.",
    healthy=True,
    expected={
        CLIENT_LOG: (
            r"INFO Sources at .*: 1; to be asked: server:19374",
            r"INFO Loaded 269 MB from server:19374 in .*, verified with",
            r"INFO Serving 269 MB \(raw layout\) at good:19375",
            r"good:19375, .* at redis",
        ),
        SERVER_LOG: (r"INFO Sent 269 MB to .*, verified with",),
        CLIENT_PAGE: (
            r'netloader_source_in_use\{source="server:19374"\} 1',
            r'netloader_loads_total\{way="received"\} 1',
            r'netloader_offered\{role="target"\} 1',
        ),
        SERVER_PAGE: (
            r'sessions_total\{outcome="done",reason="verified",side="server"\} 1',
            r'netloader_bytes_total\{side="server"\} 2\.69',
        ),
    },
    meaning="No alert fires. The client is in the registry now, so the next one has two sources.",
)
KILLED: Final = Situation(
    name="killed",
    title="A client that is killed while it receives",
    story="All its processes get SIGKILL when its transfer has begun, as by a node that dies.",
    killed=True,
    expected={
        CLIENT_LOG: (r"INFO Sources at ",),
        SERVER_LOG: (r"WARNING Client .* got no weights: (connection_lost|transfer_failed)",),
        SERVER_PAGE: (
            r'sessions_total\{outcome="fallback",reason="(connection_lost|transfer_failed)"',
        ),
    },
    meaning=(
        "Its place is free again, nothing of it is in the registry, and no alert of netloader "
        "fires: the server is well. That the instance is gone is what `up == 0` says."
    ),
)


def _wrong(token: str) -> Situation:
    return Situation(
        name="stranger",
        title="A client with a wrong token",
        story="Its AUTH_TOKEN_FILE holds another token than that of the fleet.",
        settings={"AUTH_TOKEN_FILE": token},
        expected={
            CLIENT_LOG: (
                r"WARNING Source server:19374 delivers no weights: auth_failed",
                r"WARNING No weights from a source: .*loading with vLLM's loader \(auto\) instead",
            ),
            SERVER_LOG: (r"WARNING Client .* got no weights: auth_failed",),
            CLIENT_PAGE: (r'netloader_fallbacks_total\{reason="\w+"\} 1',),
            SERVER_PAGE: (
                r'sessions_total\{outcome="fallback",reason="auth_failed",side="server"',
            ),
            ALERTS: (
                r"NetloaderRefused \(warning; instance=server, reason=auth_failed\)",
                r"NetloaderFallback \(warning; instance=stranger, reason=\w+\)",
            ),
        },
        meaning="Give the client the token of the fleet. It works all the same: from its files.",
    )


EXPIRED: Final = Situation(
    name="expired",
    title="A client whose certificate has expired",
    story="Its certificate is from the authority of the fleet, and ended yesterday.",
    expired=True,
    expected={
        CLIENT_LOG: (
            r"WARNING Source server:19374 delivers no weights: (connection_lost|unreachable)",
            r"WARNING No weights from a source: .*loading with vLLM's loader \(auto\) instead",
        ),
        SERVER_LOG: (r"WARNING No TLS with client .*expired",),
        CLIENT_PAGE: (r"netloader_fallbacks_total\{reason=",),
        SERVER_PAGE: (r'netloader_connections_refused_total\{why="tls"\}',),
        ALERTS: (
            r"NetloaderConnectionsRefused \(warning; instance=server, why=tls\)",
            r"NetloaderFallback \(warning; instance=expired, ",
        ),
    },
    meaning="Renew the certificate. A running instance reads it again by itself.",
)
OTHER: Final = Situation(
    name="other",
    title="A client with another model under the same name",
    story="Its folder has the same name and shapes; `rope_theta` in config.json is another.",
    other_model=True,
    expected={
        CLIENT_LOG: (
            r"WARNING Source server:19374 differs in 'config\.rope_parameters': .* here, .* there",
            r"WARNING No weights from a source: .*loading with vLLM's loader \(auto\) instead",
        ),
        CLIENT_PAGE: (
            r'netloader_differences_total\{field="config",side="client"\} 1',
            r"netloader_fallbacks_total\{reason=",
        ),
        SERVER_PAGE: (r'sessions_total\{outcome="done",reason="described",side="server"\}',),
        ALERTS: (r"NetloaderFallback \(warning; instance=other, reason=\w+\)",),
    },
    meaning=(
        "The line names the field, both values and the remedy. The client has compared what the "
        "server says of itself, so the server sees a question and no refusal, and no byte was sent."
    ),
)
