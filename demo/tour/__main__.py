"""A fleet with token, TLS, metrics and a registry: one good client, four in trouble.

`make tour`, or `python -m demo.tour` once the demo's model is prepared; needs redis-server,
prometheus and openssl. Writes docs/operate/tour.md and the images beside it, and ends with 0 only
if everything that the page says was seen.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.paths import CACHE, CHECKOUT, MODEL, MODEL_NAME
from demo.servers import (
    DemoError,
    Server,
    signal_group,
    start_server,
    stop_server,
    vllm_command,
    wait_until_healthy,
)
from demo.tour import situations as s
from demo.tour import views
from demo.tour.board import draw
from demo.tour.page import Page
from demo.tour.pictures import table_picture
from demo.tour.services import Authority, prometheus, quiet_ports, redis, running

RUN: Final = CACHE / "tour"
OPERATE: Final = CHECKOUT / "docs" / "operate"
INSTANCES: Final = ("server", "good", "killed", "stranger", "expired", "other")
PORTS: Final = {"server": 19374, "good": 19375}
"""What the page calls the ports at which these two serve."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One `vllm serve`."""

    server: Server
    page: str

    @property
    def log(self) -> Path:
        return self.server.log


class Fleet:
    """The instances of one run, and all around them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.names = views.Names(RUN)
        ports = quiet_ports(2 + 3 * len(INSTANCES))
        self.registry, self.prometheus = ports[:2]
        self._api = dict(zip(INSTANCES, ports[2:], strict=False))
        self.pages = dict(zip(INSTANCES, ports[2 + len(INSTANCES) :], strict=False))
        self.serving = dict(zip(INSTANCES, ports[2 + 2 * len(INSTANCES) :], strict=False))
        self.names.add(self.registry, "registry:6379")
        for name in INSTANCES:
            self.names.add(self.serving[name], f"{name}:{PORTS.get(name, 19376)}")
            self.names.add(self.pages[name], f"{name}:9400")
            self.names.add(self._api[name], f"{name}:8000")
        self.authority = Authority(RUN)
        self.token, self.wrong = RUN / "token", RUN / "wrong-token"
        for file in (self.token, self.wrong):
            file.write_text(os.urandom(32).hex())
            file.chmod(0o600)
        self.engines: list[Server] = []
        self.unseen: list[str] = []
        """What should have been seen, and where."""

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.prometheus}"

    def settings(self, name: str, days: int = 1) -> dict[str, object]:
        """What an instance is given: the same for all but its ports and its certificate."""
        return {
            "SOURCE": f"redis://127.0.0.1:{self.registry}/fleet",
            "MODEL": MODEL_NAME,
            "LISTEN_HOST": "127.0.0.1",
            "LISTEN_PORT": self.serving[name],
            "METRICS_PORT": self.pages[name],
            "AUTH_TOKEN_FILE": str(self.token),
            **self.authority.settings(name, days),
            "MAX_BANDWIDTH": "50MB",
            "MIN_RATE_MIB_S": 5,
        }

    def start(self, name: str, model: Path, extra: dict[str, object]) -> Instance:
        """Start an instance, and say with what."""
        port = self._api[name]
        command = vllm_command(model, port, "netloader", extra)
        values = RUN / f"values-{name}"
        values.mkdir()
        more = {"PROMETHEUS_MULTIPROC_DIR": str(values)}
        server = start_server(name, command, port, RUN / f"{name}.log", None, more)
        self.engines.append(server)
        return Instance(server, f"http://127.0.0.1:{self.pages[name]}/metrics")

    def stop(self, instance: Instance) -> None:
        """End an instance."""
        stop_server(instance.server)
        self.engines.remove(instance.server)

    def command(self, *words: str) -> list[str]:
        """What a command of netloader prints, with the credentials of the operator."""
        tls = self.authority.settings("operator")
        files = ("--tls-cert", "--tls-key", "--tls-ca")
        access = [w for pair in zip(files, map(str, tls.values()), strict=True) for w in pair]
        command = [sys.executable, "-m", "netloader", *words, "--token-file", str(self.token)]
        done = subprocess.run(
            [*command, *access],
            capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "COLUMNS": "100"},
        )  # fmt: skip
        if done.returncode:
            raise views.UnseenError(f"netloader {words[0]}: {done.stdout}{done.stderr}")
        return [
            self.names(self.names.in_columns(line)).rstrip() for line in done.stdout.splitlines()
        ]


def main() -> int:
    """Run the tour; 0 if all was seen."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    page = Page()
    try:
        if not MODEL.is_dir():
            raise DemoError("the model is not there yet; run `make tour`")
        shutil.rmtree(RUN, ignore_errors=True)
        RUN.mkdir(parents=True)
        with ended(Fleet(page)) as fleet:
            tour(fleet)
            page.write(RUN / "tour.md")
    except DemoError as error:
        print(f"\ntour: {error}", file=sys.stderr)
        return 1
    if fleet.unseen:
        print("\ntour: not seen:", *fleet.unseen, sep="\n    ", file=sys.stderr)
        return 1
    page.write(OPERATE / "tour.md")
    print("the tour: all was seen")
    return 0


@contextmanager
def ended(fleet: Fleet) -> Iterator[Fleet]:
    """Registry and Prometheus while the block runs; every engine is stopped at its end."""
    with ExitStack() as stack:
        stack.enter_context(running(redis(fleet.registry), fleet.registry, RUN / "redis.log"))
        command = prometheus(RUN, fleet.prometheus, fleet.pages)
        stack.enter_context(running(command, fleet.prometheus, RUN / "prometheus.log"))
        try:
            yield fleet
        finally:
            for server in [*fleet.engines]:
                stop_server(server)


def tour(fleet: Fleet) -> None:
    """The server, then every situation, then the pictures."""
    began = time.time()
    server = first(fleet)
    for situation in s.situations(str(fleet.wrong)):
        meet(fleet, server, situation)
    images = OPERATE / "images"
    images.mkdir(exist_ok=True)
    empty = draw(fleet.prometheus_url, images / "dashboard.png", time.time() - began)
    fleet.page.dashboard([fleet.names(query) for query in empty])


def first(fleet: Fleet) -> Instance:
    """The first instance: nobody serves its model yet."""
    extra = fleet.settings("server")
    fleet.page.settings(fleet.names(json.dumps(extra, indent=2)))
    server = fleet.start("server", MODEL, extra)
    wait_until_healthy(server.server)
    patterns = (
        r"INFO Sources at redis://.*: none yet",
        r"INFO .*loading with vLLM's loader \(auto\) instead",
        r"INFO Serving 269 MB \(raw layout\) at server:19374",
        r"INFO This rank, server:19374, .* at redis://",
    )
    see(fleet, s.SERVER_LOG, lambda: views.sentences(server.log, fleet.names), patterns)
    shared = views.series_of(f"{server.server.url}/metrics")
    if not shared.get('netloader_offered{role="target"}'):
        fleet.unseen.append("netloader_offered on vLLM's own page of metrics")
    fleet.page.view("On vLLM's own `/metrics` (`PROMETHEUS_MULTIPROC_DIR` is set)",
                    views.changed({}, shared, fleet.names))  # fmt: skip
    fleet.page.view("`netloader status server:19374`",
                    fleet.command("status", _at(fleet, "server")))  # fmt: skip
    return server


def _at(fleet: Fleet, name: str) -> str:
    return f"127.0.0.1:{fleet.serving[name]}"


def see(fleet: Fleet, view: str, look: Callable[[], list[str]], patterns: Sequence[str]) -> None:
    """Show a view once every pattern is in it, or note what is not there in time."""
    until = time.monotonic() + views.PATIENCE_S
    while missing := views.lacking(lines := look(), patterns):
        if time.monotonic() > until:
            fleet.unseen += [f"{view}: {pattern}" for pattern in missing]
            break
        time.sleep(views.POLL_S)
    fleet.page.view(view, lines)


def meet(fleet: Fleet, server: Instance, situation: s.Situation) -> None:
    """One client: start it, and see what there is to be seen."""
    print(f"==> {situation.title}", flush=True)
    fleet.page.situation(situation)
    names, page = fleet.names, views.series_of(server.page)
    log, alerts = views.sentences(server.log, names), set(views.firing(fleet.prometheus_url))
    model = another(MODEL) if situation.other_model else MODEL
    extra = fleet.settings(situation.name, -1 if situation.expired else 1)
    client = fleet.start(situation.name, model, {**extra, **situation.settings})
    if situation.killed:
        feeds = 'netloader_sessions_in_phase{phase="transfer",side="server"}'
        views.wait_for("a transfer", lambda: views.series_of(server.page).get(feeds))
        signal_group(client.server, signal.SIGKILL)
    if situation.healthy:
        wait_until_healthy(client.server)
    looks = {
        s.CLIENT_LOG: lambda: views.sentences(client.log, names),
        s.SERVER_LOG: lambda: views.sentences(server.log, names)[len(log) :],
        s.CLIENT_PAGE: lambda: views.changed({}, views.series_of(client.page), names),
        s.SERVER_PAGE: lambda: views.changed(page, views.series_of(server.page), names),
        s.ALERTS: lambda: sorted(set(views.firing(fleet.prometheus_url)) - alerts),
    }
    for view in s.VIEWS:
        see(fleet, view, looks[view], situation.expected.get(view, ()))
    if situation.healthy:
        top(fleet)
    fleet.page.meaning(situation.meaning)
    fleet.stop(client)


def top(fleet: Fleet) -> None:
    """`netloader top` of both that serve, and of one that does not."""
    places = [_at(fleet, name) for name in ("server", "good", "killed")]
    lines = fleet.command("top", *places, "--times", "1")
    if views.lacking(lines, (r"server:19374.*offered", r"good:19375.*offered", r"no answer")):
        fleet.unseen.append("netloader top: three servers, two of them offered")
    fleet.page.view("`netloader top server:19374 good:19375 killed:19376`", lines)
    table_picture(lines, OPERATE / "images" / "top.svg")


def another(model: Path) -> Path:
    """A folder with the same files, but one number of the config."""
    folder = RUN / "another" / model.name
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    text = (model / "config.json").read_text()
    config = json.loads(text)
    where = config.get("rope_parameters") or config
    where["rope_theta"] = 2 * float(where.get("rope_theta", 10000.0))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    sys.exit(main())
