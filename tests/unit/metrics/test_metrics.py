"""What a scrape says after sessions have run; bounded labels; the port; rules and dashboard."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from netloader import log
from netloader.config import Endpoint
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Progress
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io import fill
from netloader.io.describe import describe
from netloader.io.outcome import Attempt, Outcome
from netloader.log import capture, emit, get_logger
from netloader.log_events import EVENTS
from netloader.metrics.catalogue import CATALOGUE
from netloader.metrics.page import open_page
from netloader.metrics.recorder import Recorder
from netloader.metrics.records import (
    BY_EVENT,
    BY_SESSION,
    BY_SOURCE,
    MOST_SOURCES,
    PROBLEM_EVENTS,
)
from netloader.vllm_plugin.load.display import tell_differences
from tests.unit.io.helpers import FAST, asking, closed_port, eventually, sealed, serving

ROOT = Path(__file__).parents[3]
RULES = ROOT / "docs" / "operate" / "prometheus"
WEIGHTS = {"w": torch.ones(100_000)}
NAME = re.compile(r"netloader_[a-z_]+")


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """One that takes the records of the test alone."""
    fresh = CollectorRegistry()
    sink = Recorder(fresh)
    log.SINKS.append(sink)
    yield fresh
    log.SINKS.remove(sink)


def value(registry: CollectorRegistry, series: str, **labels: str) -> float:
    return registry.get_sample_value(series, labels) or 0.0


def open_sessions(registry: CollectorRegistry) -> float:
    sides = ("client", "server")
    return sum(value(registry, "netloader_sessions_open", side=side) for side in sides)


def test_a_scrape_tells_what_happened(registry: CollectorRegistry) -> None:
    wanted = {"w": torch.zeros(100_000)}
    with serving(WEIGHTS, {"model": "a"}) as server:
        gone, there = closed_port(), sealed(server).endpoint
        assert fill(wanted, [gone, there], {"model": "a"}, asking()).ok
        assert not fill(wanted, there, {"model": "b"}, asking()).ok
        assert describe([there], Identity({}), asking()).description is not None

    for side in ("client", "server"):
        done = {"side": side, "outcome": "done", "reason": "verified"}
        assert value(registry, "netloader_sessions_total", **done) == 1
        assert value(registry, "netloader_bytes_total", side=side) == 400_000
    assert eventually(lambda: open_sessions(registry) == 0)
    refused = {"side": "server", "outcome": "fallback", "reason": "identity_mismatch"}
    assert value(registry, "netloader_sessions_total", **refused) == 1
    assert value(registry, "netloader_differences_total", side="server", field="model") == 1
    again = {"source": str(there), "again": "yes"}
    assert value(registry, "netloader_source_attempts_total", **again) == 1
    phase = {"side": "client", "phase": "transfer"}
    assert value(registry, "netloader_phase_seconds_count", **phase) == 1
    assert value(registry, "netloader_listening") == 0, "it has stopped"


def told(event: str, **fields: object) -> None:
    named = {f"netloader.{name}": value for name, value in fields.items()}
    emit(get_logger("test"), f"netloader.{event}", named)


def test_no_peer_makes_a_label(registry: CollectorRegistry) -> None:
    for n in range(3 * MOST_SOURCES):
        told("source.tried", source=f"10.0.0.{n}:1")
        told("source.differs", field=f"config.made_up_{n}")
        told("source.differs", field=f"made_up_{n}")
        told("session.closed", side=f"side {n}", outcome=str(n), reason=f"r{n}")
        told("server.offered", role=f"role {n}")
    lines = generate_latest(registry).decode().splitlines()
    assert len([line for line in lines if "source_attempts_total{" in line]) == MOST_SOURCES + 1
    assert len([line for line in lines if "differences_total{" in line]) == 2
    assert len([line for line in lines if "netloader_offered{" in line]) == 1
    assert "made_up" not in str(lines)


def test_peers_that_are_closed_before_they_say_anything_are_counted(
    registry: CollectorRegistry,
) -> None:
    told("listener.insecure", connections=3)
    told("listener.refused", connections=1)
    refused = partial(value, registry, "netloader_connections_refused_total")
    assert (refused(why="tls"), refused(why="network")) == (3, 1)


def test_a_difference_that_a_client_finds_is_counted_by_its_field(
    registry: CollectorRegistry,
) -> None:
    found = (Difference("config.rope_theta", "1", "2"), Difference("dtype", "a", "b"))
    attempt = Attempt(Endpoint("h", 1), Reason.IDENTITY_MISMATCH, "", 0, {}, found)
    refused = Outcome(State.FALLBACK, Reason.NO_SOURCE, (attempt,), 0, False, Progress())
    tell_differences(refused, get_logger("test"))
    for field in ("config", "dtype"):
        assert value(registry, "netloader_differences_total", side="client", field=field) == 1


def test_the_source_in_use_is_one(registry: CollectorRegistry) -> None:
    told("loader.received", source="a:1")
    told("loader.received", source="b:1")
    assert value(registry, "netloader_source_in_use", source="a:1") == 0
    assert value(registry, "netloader_source_in_use", source="b:1") == 1


def test_the_rate_and_the_phase_are_those_of_a_running_transfer(
    registry: CollectorRegistry,
) -> None:
    wanted = {"w": torch.zeros(6_000_000)}
    seen: list[tuple[float, float]] = []

    def look(_done: int, _total: int) -> None:
        fed = value(registry, "netloader_sessions_in_phase", side="server", phase="transfer")
        both = [
            value(registry, "netloader_rate_bytes_per_second", side=side)
            for side in ("client", "server")
        ]
        seen.append((fed, min(both)))

    slow = replace(FAST, min_rate_bytes_per_s=1e6)
    weights = {"w": torch.ones(6_000_000)}
    with serving(weights, {"model": "a"}, max_bandwidth="10MB", deadlines=slow) as server:
        there = sealed(server).endpoint
        assert fill(wanted, there, {"model": "a"}, asking(report=look)).ok
        assert eventually(lambda: open_sessions(registry) == 0)
    assert max(fed for fed, _ in seen) == 1
    assert 3e6 < max(rate for _, rate in seen) < 1.3e7, "24 MB at 10 MB a second"
    for side in ("client", "server"):
        assert value(registry, "netloader_rate_bytes_per_second", side=side) == 0
        for phase in ("listen", "handshake", "validate", "transfer"):
            assert value(registry, "netloader_sessions_in_phase", side=side, phase=phase) == 0


def test_a_client_whose_source_is_busy_is_queued_until_it_is_its_turn(
    registry: CollectorRegistry,
) -> None:
    queued = partial(value, registry, "netloader_clients_queued")
    waits = replace(FAST, queue_s=60)
    with serving(WEIGHTS, {"model": "a"}, max_clients=1) as server:
        there = sealed(server).endpoint
        (published,) = server._opened()[1].published_models
        assert published.admit()
        filling = threading.Thread(
            target=fill,
            args=({"w": torch.zeros(100_000)}, there, {"model": "a"}, asking(deadlines=waits)),
        )
        filling.start()
        try:
            assert eventually(lambda: queued() == 1)
        finally:
            published.leave()
            filling.join()
    assert queued() == 0
    assert value(registry, "netloader_bytes_total", side="client") == 400_000


def test_what_follows_a_withdrawal_and_a_fallback(registry: CollectorRegistry) -> None:
    told("server.offered", role="target", raw_bytes=9, cached_bytes=4)
    assert value(registry, "netloader_offered", role="target") == 1
    assert value(registry, "netloader_cache_bytes", role="target") == 4
    told("server.withdrawn", role="target")
    told("fallback.engaged", reason="no_source")
    assert value(registry, "netloader_offered", role="target") == 0
    assert value(registry, "netloader_fallbacks_total", reason="no_source") == 1
    assert value(registry, "netloader_loads_total", way="fallback") == 1
    event = "netloader.server.withdrawn"
    assert value(registry, "netloader_problems_total", event=event) == 1


@pytest.mark.parametrize("end", ["filled", "read"])
def test_a_rank_on_standby_is_seen_until_it_has_weights(
    registry: CollectorRegistry, end: str
) -> None:
    told("standby.waiting")
    told("standby.failed")
    assert value(registry, "netloader_standby") == 1
    told(f"standby.{end}")
    assert value(registry, "netloader_standby") == 0


def test_every_event_that_is_counted_is_logged() -> None:
    assert {*BY_EVENT, *BY_SOURCE, *BY_SESSION, *PROBLEM_EVENTS} <= set(EVENTS)


def test_a_sink_that_raises_costs_no_record() -> None:
    def broken(_: object) -> None:
        raise RuntimeError

    log.SINKS.append(broken)
    try:
        with capture() as lines:
            told("source.waiting")
    finally:
        log.SINKS.remove(broken)
    assert len(lines) == 1


def test_the_page_is_scraped_and_a_taken_port_is_a_warning() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logger = get_logger("test")
    close = open_page("127.0.0.1", port, logger)
    try:
        told("loader.ordinary")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
            assert 'netloader_loads_total{way="ordinary"}' in page.read().decode()
        with capture() as lines:
            open_page("127.0.0.1", port, logger)()
            open_page("127.0.0.1", 65536, logger)()
    finally:
        close()
    assert [line["event"] for line in lines] == ["netloader.metrics.failed"] * 2
    assert "in use" in lines[0]["netloader.detail"]


def test_without_prometheus_client_a_page_is_a_warning_and_nothing_is_counted() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from netloader import log\n"
        "from netloader.metrics.page import open_page\n"
        "with log.capture() as lines: open_page('', 9, log.get_logger('x'))()\n"
        "print(lines[0]['netloader.detail'], log.SINKS)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "prometheus_client is not installed []"


# -- rules and dashboard --------------------------------------------------------------------------

ENDINGS = ("_bucket", "_count", "_sum")


def unknown(text: str) -> set[str]:
    """Names in expressions that no series has."""
    known = {each.name for each in CATALOGUE}
    used = set(NAME.findall(text))
    return {
        n for n in used if n not in known and not any(n.removesuffix(e) in known for e in ENDINGS)
    }


def test_rules_and_dashboard_name_series_that_there_are() -> None:
    board = json.loads((RULES / "dashboard.json").read_text())
    shown = " ".join(t["expr"] for panel in board["panels"] for t in panel["targets"])
    rules = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"][0]["rules"]
    assert unknown(shown) == unknown(" ".join(rule["expr"] for rule in rules)) == set()
    assert {each.name for each in CATALOGUE} <= {
        n.removesuffix("_bucket") for n in NAME.findall(shown)
    } | {"netloader_listening"}
    assert unknown("netloader_made_up") == {"netloader_made_up"}


def test_every_alert_has_an_entry_of_the_runbook() -> None:
    page = (ROOT / "docs" / "operate" / "metrics.md").read_text()
    rules = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert f"### {rule['alert']}\n" in page
        entry = f"https://docs.example/operate/metrics.html#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == entry


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")
@pytest.mark.parametrize("words", [("check", "alerts.yml"), ("test", "alerts.test.yml")])
def test_the_rules_pass_the_tests_of_prometheus(words: tuple[str, str]) -> None:
    kind, file = words
    ran = subprocess.run(
        ["promtool", kind, "rules", file],
        cwd=RULES, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
