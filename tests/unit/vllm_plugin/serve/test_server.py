"""A rank becomes a server, says where, and stops when its model is gone or changed."""

import gc
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from netloader.config import Endpoint
from netloader.fsm.messages import Begin, Lane, Offer, Request
from netloader.io import fill
from netloader.log import capture
from netloader.vllm_plugin.config.settings import CachePolicy, Settings
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.serve import live_model
from netloader.vllm_plugin.serve import port as ports
from netloader.vllm_plugin.serve.worker import this_worker
from tests.unit.io.helpers import Peer, contents, eventually, hello
from tests.unit.vllm_plugin.helpers import (
    Model,
    events,
    identity,
    line_of,
    live,
    newest_server,
    receive,
    refusal,
    serve,
    settings,
    where,
)

pytestmark = pytest.mark.usefixtures("worker_process")

PATIENCE_S = 30.0


def test_the_address_file_tells_the_truth_and_goes_with_the_model(tmp_path: Path) -> None:
    module = nn.Linear(4, 4)
    prefix = str(tmp_path / "deep" / "rank-")
    serve(module, settings(output_prefix=prefix))
    file = Path(f"{prefix}0.txt")
    endpoint = Endpoint.parse(file.read_text())
    twin = nn.Linear(4, 4)
    assert fill(twin, [endpoint], identity()).ok
    assert torch.equal(twin.weight, module.weight)
    del module
    gc.collect()
    assert eventually(lambda: not file.exists(), PATIENCE_S)
    assert eventually(lambda: not _accepts(endpoint), PATIENCE_S)
    assert list(file.parent.iterdir()) == []


def _accepts(endpoint: Endpoint) -> bool:
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=5).close()
    except OSError:
        return False
    return True


def test_what_is_offered_was_sealed_before_post_processing() -> None:
    # From the first connection on: there is no moment at which a client meets anything else.
    module = nn.Linear(300, 300)
    before = module.weight.detach().clone()
    loaded = serve(module, then=partial(_flip, module))
    assert loaded.snapshot is not None
    with Peer.call(where()) as peer:
        peer.say(hello(identity=identity().hard))
        offer = peer.hear()
        assert isinstance(offer, Offer)
        assert offer.segment_digests == loaded.snapshot.digests
    twin = nn.Linear(300, 300)
    assert receive(twin).ok
    assert torch.equal(twin.weight, before)
    with capture() as lines:
        del module
        gc.collect()
        assert eventually(lambda: "netloader.listener.stopped" in events(lines), PATIENCE_S)


def _flip(module: nn.Linear) -> None:
    module.weight = nn.Parameter(module.weight.detach().flip(0).contiguous(), requires_grad=False)


@pytest.mark.parametrize(
    ("told", "offered"), [("auto", ("shm", "tcp", "gloo")), ("tcp", ("tcp",)), ("gloo", ("gloo",))]
)
def test_a_server_moves_bytes_as_it_was_told_and_not_as_its_clients_like(
    told: str, offered: tuple[str, ...]
) -> None:
    # Who sets tcp on an instance that serves users does not want a communicator on its device.
    model = nn.Linear(4, 4)
    serve(model, settings(transport=told))
    assert live().published.entry.transports == offered


def test_a_busy_port_is_a_line_in_the_log() -> None:
    module = nn.Linear(4, 4)
    with socket.create_server(("127.0.0.1", 0)) as busy, capture() as lines:
        serve(module, settings(listen_port=busy.getsockname()[1]))
    assert events(lines) == ["netloader.listener.failed"]
    assert "LISTEN_PORT" in lines[0]["netloader.remedy"]


def test_weights_changed_after_loading_are_withdrawn(tmp_path: Path) -> None:
    # The port stays open: it is the place where clients hear why.
    module = nn.Linear(4, 4)
    with capture() as lines:
        options = settings(output_prefix=f"{tmp_path}/r-")
        serve(module, options, then=module.weight.data.zero_)
        assert eventually(lambda: "netloader.server.withdrawn" in events(lines), PATIENCE_S)
    assert "weight" in line_of(lines, "netloader.server.withdrawn")["netloader.detail"]
    assert eventually(lambda: "weight" in refusal()[1], PATIENCE_S)
    assert refusal()[0] == "not_serving"


def test_lost_parameters_are_named_and_nothing_listens() -> None:
    with capture() as lines:
        serve(Model(), settings(weight_cache=CachePolicy.NO))
    assert events(lines) == ["netloader.server.refused"]
    assert "up.weight, down.weight" in lines[0]["netloader.detail"]
    assert "WEIGHT_CACHE" in lines[0]["netloader.remedy"]


def test_a_bug_of_ours_never_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(live_model, "publish", broken)
    with capture() as lines:
        serve(nn.Linear(4, 4))
    assert events(lines) == ["netloader.driver.error"]


def test_an_unwritable_prefix_does_not_stop_the_server(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    module = nn.Linear(4, 4)
    with capture() as lines:
        serve(module, settings(output_prefix=f"{tmp_path}/file/r-"))
    assert "netloader.server.offered" in events(lines)
    assert any("OUTPUT_PREFIX" in str(line.get("netloader.detail")) for line in lines)


@pytest.mark.parametrize(
    ("port", "rank", "answer"),
    [(None, 3, True), (1024, 0, True), (1023, 0, False), (65535, 0, True), (65535, 1, False)],
)
def test_which_ports_mean_no_listener(port: int | None, rank: int, answer: bool) -> None:
    with capture() as lines:
        assert ports.wanted(port, rank) is answer
    assert bool(lines) is not answer


def test_the_offer_says_what_it_costs() -> None:
    module, untouched = Model(), nn.Linear(4, 4)
    with capture() as lines:
        serve(module)
        serve(untouched, role=DRAFT)
    target, draft = [line for line in lines if line["event"] == "netloader.server.offered"]
    cached = 2 * 64 * 64 * 4
    assert (target["netloader.cached_bytes"], target["netloader.cached_in"]) == (cached, "dram")
    assert target["netloader.raw_bytes"] == cached + 64 * 4
    assert (draft["netloader.cached_bytes"], draft["netloader.cached_in"]) == (0, "nowhere")


def test_an_address_left_behind_by_a_killed_server_is_taken_away(tmp_path: Path) -> None:
    options = settings(output_prefix=f"{tmp_path}/r-")
    (tmp_path / "r-0.txt").write_text("10.0.0.1:19374")
    ports.forget_address(ports.PortChoice.of(options, 0))
    assert list(tmp_path.iterdir()) == []
    ports.forget_address(ports.PortChoice.of(options, 0))


def test_the_address_of_a_later_server_is_left_alone(tmp_path: Path) -> None:
    module = nn.Linear(4, 4)
    serve(module, settings(output_prefix=f"{tmp_path}/r-"))
    file = tmp_path / "r-0.txt"
    file.write_text("10.0.0.1:19374")
    endpoint = where()
    del module
    gc.collect()
    assert eventually(lambda: not _accepts(endpoint), PATIENCE_S)
    assert file.read_text() == "10.0.0.1:19374"


def test_a_later_server_that_writes_its_address_at_the_last_moment_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The earlier one has just seen that the file is still its own.
    module, later = nn.Linear(4, 4), tmp_path / "later"
    serve(module, settings(output_prefix=f"{tmp_path}/r-"))
    file, read = tmp_path / "r-0.txt", Path.read_text

    def then_the_later(path: Path) -> str:
        text = read(path)
        if later.exists():
            later.replace(file)
        return text

    later.write_text("10.0.0.1:19374")
    monkeypatch.setattr(Path, "read_text", then_the_later)
    endpoint = where()
    del module
    gc.collect()
    assert eventually(lambda: not _accepts(endpoint), PATIENCE_S)
    assert read(file) == "10.0.0.1:19374"
    assert list(tmp_path.iterdir()) == [file]


def test_a_model_that_goes_waits_for_nobody() -> None:
    # The garbage collector runs on any thread, and who has the lock may need one that it has.
    def hold() -> None:
        with server._rank.lock:
            held.set()
            collected_in_time.append(gone.wait(PATIENCE_S))

    model, held, gone, collected_in_time = (
        Model(),
        threading.Event(),
        threading.Event(),
        list[bool](),
    )
    serve(model)
    server = newest_server()
    holding = threading.Thread(target=hold)
    holding.start()
    assert held.wait(PATIENCE_S)
    del model
    gc.collect()
    gone.set()
    holding.join()
    assert collected_in_time == [True]
    assert eventually(lambda: not this_worker().servers, PATIENCE_S)


@pytest.mark.parametrize("changes", [1, 2])
def test_a_fence_ends_the_sessions_of_every_model_that_was_replaced_in_its_role(
    changes: int,
) -> None:
    # Sleep frees the memory after the fence: no session may still read it, however old it is.
    model = nn.Linear(4096, 2048)  # 32 MiB: more than the buffers of a connection hold
    serve(model)
    with Peer.call(where()) as peer, Peer.call(where()) as lane:
        peer.say(hello(identity=identity().hard))
        offer = peer.hear()
        assert isinstance(offer, Offer)
        lane.say(Lane(offer.session, 0))
        peer.answered()
        peer.say(Request(tuple(range(len(offer.segment_digests)))))
        assert peer.hear() == Begin()
        assert lane.sock.recv(1)  # and no more: the server's thread waits in the middle of a send
        here = live()
        first = here.published
        for _ in range(changes):
            here.proven = True
            here.replace(here.published, "weight was written to")
        assert here.published is not first
        assert not first.quiet(0)

        here.fence("the engine sleeps")

        assert first.quiet(0)


# -- a target and a draft ------------------------------------------------------------------------


@pytest.fixture
def random_port(tmp_path: Path) -> Settings:
    return settings(output_prefix=f"{tmp_path}/r-")


def test_target_and_draft_share_a_port_and_each_client_gets_its_own(random_port: Settings) -> None:
    target, draft = Model(1), Model(2)
    before = contents(target), contents(draft)
    serve(target, random_port)
    endpoint = where()
    serve(draft, random_port, role=DRAFT)
    assert where() == endpoint

    received = Model(3), Model(4)
    assert receive(received[0], TARGET).ok
    assert receive(received[1], DRAFT).ok
    assert (contents(received[0]), contents(received[1])) == before


@pytest.mark.parametrize(("gone", "left"), [(TARGET, DRAFT), (DRAFT, TARGET)])
def test_when_one_is_gone_the_other_is_still_served(
    random_port: Settings, tmp_path: Path, gone: str, left: str
) -> None:
    models: dict[str, nn.Module] = {TARGET: Model(1), DRAFT: Model(2)}
    for role, model in models.items():
        serve(model, random_port, role)
    endpoint = where()
    del models[gone], model
    gc.collect()
    assert eventually(lambda: newest_server().roles == (left,), PATIENCE_S)
    assert refusal(gone) == ("not_serving", "the model is gone")
    assert receive(Model(3), left).ok
    assert (tmp_path / "r-0.txt").exists()
    models.clear()
    gc.collect()
    assert eventually(lambda: not _accepts(endpoint), PATIENCE_S)
    assert not (tmp_path / "r-0.txt").exists()


def test_one_that_was_changed_is_withdrawn_and_the_other_is_still_served(
    random_port: Settings,
) -> None:
    target, draft = Model(1), Model(2)
    with capture() as lines:
        serve(target, random_port)
        serve(draft, random_port, DRAFT, then=draft.norm.data.zero_)
        assert eventually(lambda: "netloader.server.withdrawn" in events(lines), PATIENCE_S)
    assert line_of(lines, "netloader.server.withdrawn")["netloader.role"] == DRAFT
    assert refusal(DRAFT)[0] == "not_serving"
    assert receive(Model(3), TARGET).ok


@pytest.mark.parametrize("again", [TARGET, DRAFT])
def test_a_second_model_of_a_role_does_not_disturb_the_first(again: str) -> None:
    models = {role: Model(seed) for seed, role in enumerate((TARGET, DRAFT))}
    for role, model in models.items():
        serve(model, role=role)
    first = where()
    third = Model(3)
    before = contents(third)
    serve(third, role=again)
    assert where() != first
    twin = Model(4)
    assert receive(twin, again).ok
    assert contents(twin) == before
    for role in models:
        assert fill(Model(4), [first], identity(role)).ok


def test_a_process_that_ends_takes_its_address_file_along(tmp_path: Path) -> None:
    # The model is alive to the end: an engine does not take itself apart.
    script = (
        "import sys\n"
        "from tests.unit.vllm_plugin.helpers import Model, serve, settings\n"
        "model = Model()\n"
        "serve(model, settings(output_prefix=sys.argv[1]))\n"
        "print(open(sys.argv[1] + '0.txt').read())\n"
    )
    command = [sys.executable, "-c", script, f"{tmp_path}/r-"]
    root = Path(__file__).parents[4]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, cwd=root
    )
    assert Endpoint.parse(done.stdout.strip()).port
    assert list(tmp_path.iterdir()) == []
