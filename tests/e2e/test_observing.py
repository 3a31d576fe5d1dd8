"""A real `vllm serve`: our series on its own page of metrics, our spans where its own go."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from demo.servers import DIRECT, start_server, stop_server, vllm_command, wait_until_healthy
from tests.support import zoo
from tests.support.ports import free_port
from tests.unit.io.helpers import closed_port, eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PATIENCE_S = 60.0


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A receiver of OTLP over HTTP, and the spans that it got."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", spans
        server.shutdown()
        thread.join()


def test_series_are_on_vllms_own_page_and_sessions_are_in_the_trace_of_its_load(
    tmp_path: Path,
) -> None:
    model = zoo.write(tmp_path / "m", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    port, values = free_port(), tmp_path / "values"
    values.mkdir()
    extra = {"LISTEN_HOST": "127.0.0.1", "MODEL": "tiny"}
    source = [{"device_id": 0, "sources": [str(closed_port())]}]
    with collector() as (endpoint, spans):
        command = vllm_command(model, port, "netloader", {**extra, "SOURCE": source})
        command += ["--skip-tokenizer-init", "--otlp-traces-endpoint", endpoint]
        command[command.index("--max-model-len") + 1] = "128"
        environment = {
            "PROMETHEUS_MULTIPROC_DIR": str(values),
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        server = start_server("server", command, port, tmp_path / "log", None, environment)
        try:
            wait_until_healthy(server)
            with DIRECT.open(f"{server.url}/metrics", timeout=PATIENCE_S) as answer:
                shown = answer.read().decode()
            ours = "netloader session"
            assert eventually(lambda: ours in {s.name for s in spans}, PATIENCE_S), server.tail()
        finally:
            stop_server(server)
    page = [line for line in shown.splitlines() if line.startswith("netloader_")]
    assert 'netloader_offered{role="target"} 1.0' in page
    ended = 'netloader_sessions_total{outcome="fallback",reason="unreachable",side="client"} '
    assert any(line.startswith(ended) for line in page), page
    assert "vllm:num_requests_running" in shown, "vLLM's own are there too"
    sessions = [span for span in spans if span.name == ours]
    assert {span.status.message for span in sessions} == {"unreachable"}
    above = {span.name for s in sessions for span in spans if span.span_id == s.parent_span_id}
    below = {span.name for s in sessions for span in spans if span.parent_span_id == s.span_id}
    print(f"sessions are inside vLLM's {above}")
    assert {s.parent_span_id for s in sessions} <= {span.span_id for span in spans}
    assert below == {"netloader listen"}
