"""Spans of sessions: one each, its phases inside, under what loads the model; nothing secret."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from netloader import log
from netloader.io import fill
from netloader.tracing import ENDPOINT, Spans
from tests.unit.io.helpers import asking, eventually, sealed, serving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    sink = Spans(provider.get_tracer("test"))
    log.SINKS.append(sink)
    yield exporter
    log.SINKS.remove(sink)
    provider.shutdown()


def sessions(exporter: InMemorySpanExporter, kind: SpanKind) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.kind is kind]


def phases(exporter: InMemorySpanExporter, session: ReadableSpan) -> list[ReadableSpan]:
    assert session.context is not None
    own = session.context.span_id
    return [s for s in exporter.get_finished_spans() if s.parent and s.parent.span_id == own]


def test_a_transfer_is_a_span_of_each_side_with_its_phases_in_order(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("traceparent", f"00-{TRACE}-{SPAN}-01")
    with serving({"w": torch.ones(100_000)}, {"model": "a"}) as server:
        there = sealed(server).endpoint
        assert fill({"w": torch.zeros(100_000)}, there, {"model": "a"}, asking()).ok
        assert eventually(lambda: bool(sessions(exported, SpanKind.SERVER)))
    (client,), (serves,) = (sessions(exported, k) for k in (SpanKind.CLIENT, SpanKind.SERVER))
    assert client.parent is not None
    assert (f"{client.parent.trace_id:x}", f"{client.parent.span_id:x}") == (TRACE[1:], SPAN)
    assert serves.parent is None, "it belongs to no load of this process"
    for session in (client, serves):
        inside = phases(exported, session)
        assert [span.name for span in inside][-3:] == [
            f"netloader {phase}" for phase in ("handshake", "validate", "transfer")
        ]
        assert inside[0].start_time == session.start_time
        assert all(one.end_time == then.start_time for one, then in pairwise(inside))
        assert inside[-1].end_time == session.end_time
        assert session.attributes is not None
        assert session.attributes["netloader.transfer.bytes"] == 400_000
    assert client.attributes is not None
    assert serves.attributes is not None
    same = "netloader.session.id"
    assert client.attributes[same] == serves.attributes[same], "it joins the two sides"


def test_a_refusal_is_an_error_with_its_reason(exported: InMemorySpanExporter) -> None:
    weights = {"w": torch.ones(100)}
    with serving(weights, {"model": "a"}) as server:
        assert not fill(weights, sealed(server).endpoint, {"model": "b"}, asking()).ok
    (client,) = sessions(exported, SpanKind.CLIENT)
    assert client.status.status_code is StatusCode.ERROR
    assert client.status.description == "identity_mismatch"


def test_without_opentelemetry_or_an_endpoint_nothing_is_traced() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from netloader import log\n"
        "from netloader.tracing import trace_sessions\n"
        "trace_sessions(); print(log.SINKS)"
    )
    for more in ({}, {ENDPOINT: "http://127.0.0.1:9/v1/traces"}):
        environment = {key: value for key, value in os.environ.items() if key != ENDPOINT}
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, **more},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert ran.stdout.strip() == "[]"
