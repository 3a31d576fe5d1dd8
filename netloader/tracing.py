"""OpenTelemetry spans of sessions, made of log records. Needs opentelemetry-api, which is optional.

A session is one span, and each of its phases a span inside it; they are made when the session is
over, of its last record. Where they go is the business of the program's tracer provider: without
one they cost nothing and go nowhere.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from netloader.fsm.states import State
from netloader.log import SINKS

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

NEEDED: Final = "opentelemetry"
ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
"""Set in the processes of an engine with `--otlp-traces-endpoint`, by vLLM."""
ATTRIBUTES: Final = (
    "netloader.side",
    "netloader.session.id",
    "netloader.outcome",
    "netloader.reason",
    "netloader.transport",
    "netloader.digest_algorithm",
    "netloader.transfer.bytes",
    "netloader.transfer.throughput_bytes_per_s",
    "netloader.source.attempt",
    "network.peer.address",
    "network.peer.port",
)
"""Fields of the record that a span has. Texts of the peer are none of them."""


@cache
def trace_sessions() -> None:
    """Give the sessions of this process to its tracer provider, from now on.

    Does nothing unless traces are exported and opentelemetry is installed, and nothing the second
    time.
    """
    if os.environ.get(ENDPOINT) and find_spec(NEEDED) is not None:
        from opentelemetry import trace

        SINKS.append(Spans(trace.get_tracer("netloader")))


class Spans:
    """A sink of log records; thread-safe, as tracers are."""

    def __init__(self, tracer: "Tracer") -> None:
        self._tracer = tracer

    def __call__(self, fields: Mapping[str, object]) -> None:
        """Take one record."""
        if fields.get("event") == "netloader.session.closed":
            self._closed(fields)

    def _closed(self, fields: Mapping[str, object]) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        end = round(datetime.now(UTC).timestamp() * 1e9)
        spent = {state.value: _nanoseconds(fields, state) for state in State}
        at = end - sum(spent.values())
        given = {key: fields[key] for key in ATTRIBUTES if key in fields}
        attributes = {k: v for k, v in given.items() if isinstance(v, str | int | float)}
        client = fields.get("netloader.side") == "client"
        session = self._tracer.start_span(
            "netloader session",
            _loading() if client else None,
            SpanKind.CLIENT if client else SpanKind.SERVER,
            attributes,
            start_time=at,
        )
        if fields.get("netloader.outcome") != State.DONE.value:
            session.set_status(StatusCode.ERROR, str(fields.get("netloader.reason")))
        inside = set_span_in_context(session)
        for phase, nanoseconds in spent.items():
            if nanoseconds:
                one = self._tracer.start_span(f"netloader {phase}", inside, start_time=at)
                at += nanoseconds
                one.end(at)
        session.end(end)


def _nanoseconds(fields: Mapping[str, object], state: State) -> int:
    spent = fields.get(f"netloader.phase.{state.value}.duration_s", 0.0)
    return round(spent * 1e9) if isinstance(spent, int | float) else 0


def _loading() -> "Context":
    """The span in which vLLM loads the model: it is in the environment meanwhile."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    names = ("traceparent", "tracestate")
    carrier = {name: os.environ[name] for name in names if name in os.environ}
    return TraceContextTextMapPropagator().extract(carrier)
