"""The command against real servers: what it answers, how it refuses, with which exit status."""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from netloader.cli.top import Watch
from netloader.config import Endpoint, Secret
from netloader.io import Outcome, fill
from netloader.io.store.memory import HostStore
from netloader.io.store.module import ModuleStore
from tests.support.ports import free_port
from tests.unit.cli.helpers import COMMAND, environment, inside, netloader
from tests.unit.io.helpers import asking, closed_port, eventually, sealed, serving

TOKEN = "sixteen characters and more"
WEIGHTS = {"b.weight": torch.arange(60000.0).reshape(300, 200), "a.bias": torch.ones(7)}


def changed() -> dict[str, Tensor]:
    """The same tensors with one other number."""
    return {**WEIGHTS, "a.bias": torch.tensor([1.0, 1, 1, 2, 1, 1, 1])}


def test_status_says_what_a_server_offers_to_people_and_to_programs() -> None:
    with serving(WEIGHTS, {"model": "tiny\x1b[2J"}, max_clients=3) as server:
        where = str(sealed(server).endpoint)
        shown, told = inside("status", where), inside("status", where, "--json")

    assert (shown.code, told.code) == (0, 0)
    assert "offered" in shown.out
    assert "0 of 3 places" in shown.out
    assert "\x1b" not in shown.out, "a peer's text is no command for the terminal"
    (model,) = told.data["models"]
    assert model["root"] in shown.out
    assert (model["tensors"], model["nbytes"]) == (2, 240028)
    assert model["identity"]["model"] == "tiny\x1b[2J"


def test_who_cannot_be_reached_or_asks_for_a_token_has_an_exit_status_of_its_own(
    tmp_path: Path,
) -> None:
    nobody = netloader("status", str(closed_port()), "--json")
    assert nobody.code == 3
    assert "unreachable" in nobody.data["error"]

    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with serving(WEIGHTS, token=Secret(TOKEN)) as server:
        where = str(server.endpoint)
        without = inside("status", where)
        wrong = inside("status", where, env={"NETLOADER_TOKEN": "not the right one"})
        by_file = netloader("status", where, "--token-file", str(tmp_path / "token"))
        by_env = inside("status", where, env={"NETLOADER_TOKEN": TOKEN})
    assert (without.code, wrong.code, by_file.code, by_env.code) == (4, 4, 0, 0)
    assert "--token-file" in without.err
    assert "auth_failed" in wrong.err
    assert "not the right one" not in wrong.out + wrong.err


def test_a_token_that_no_server_could_have_is_refused_and_not_shown() -> None:
    ran = inside("status", str(closed_port()), env={"NETLOADER_TOKEN": "hunter2"})
    assert ran.code == 2
    assert "NETLOADER_TOKEN is too short" in ran.err
    assert "hunter2" not in ran.out + ran.err


def test_a_page_that_cannot_be_read_says_why() -> None:
    ran = inside("status", f"http://{closed_port()}/metrics")
    assert ran.code == 3
    assert ran.err.endswith("/metrics cannot be read: Connection refused\n")


def test_verify_tells_the_same_weights_from_others() -> None:
    with (
        serving(WEIGHTS) as one,
        serving(WEIGHTS, {"model": "another name"}) as same,
        serving(changed()) as other,
        serving(WEIGHTS, segment_bytes=1 << 20) as cut,
    ):
        places = [str(sealed(server).endpoint) for server in (one, same, other, cut)]
        yes, no, unknown = (inside("verify", places[0], to, "--json") for to in places[1:])
        text = netloader("verify", *places[:2])

    assert (yes.code, yes.data["same"]) == (0, True)
    assert [d["field"] for d in yes.data["models"][0]["differences"]] == ["model", "dtype"]
    assert "the same weights" in text.out
    assert "another name" in text.out
    assert (no.code, no.data["models"][0]["same"]) == (1, False)
    assert "root" in no.data["models"][0]["why"]
    assert (unknown.code, unknown.data["models"][0]["same"]) == (1, None)


def test_pull_writes_every_byte_and_a_folder_that_can_be_served_again(tmp_path: Path) -> None:
    out = tmp_path / "weights"
    with serving(WEIGHTS, {"model": "tiny", "role": "target"}) as server:
        pulled = netloader("pull", str(closed_port()), str(server.endpoint), "--out", str(out))
    assert pulled.code == 0, pulled.err
    assert "verified" in pulled.out
    files = load_file(out / "model.safetensors")
    assert all(torch.equal(files[name], tensor) for name, tensor in WEIGHTS.items())

    (out / "config.json").write_text("{}")
    serve = subprocess.Popen(
        [*COMMAND, "serve", str(out), "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with serve:
        assert serve.stdout is not None
        ready = json.loads(serve.stdout.readline())
        memory = HostStore(ModuleStore([*WEIGHTS.items()]).manifest)  # names in another order
        identity = {"model": "tiny", "role": "target"}
        filled = fill(memory, ready["endpoint"], identity, asking())
        session = json.loads(serve.stdout.readline())
        words = ("run", ready["endpoint"], "--dry-run", "--json", "--", "vllm", "serve")
        started = inside(*words, env={"NETLOADER_CACHE": str(tmp_path / "cache")})
        assert json.loads(serve.stdout.readline())["sent_bytes"] == 2
        shown = inside("status", ready["endpoint"]).out
        watched = inside("top", ready["endpoint"], "--times", "1", "--json").out
        serve.send_signal(signal.SIGTERM)
        ended = json.loads(serve.stdout.readline())
    assert filled.ok
    assert torch.equal(memory.tensors()["b.weight"], WEIGHTS["b.weight"])
    assert (ready["files"], started.data["files"]) == (1, ["config.json"]), "no card, no weights"
    assert started.data["model"] == "tiny"
    assert "files     2 B in 1 files" in shown
    assert '"role": "files"' not in watched
    assert (session["event"], session["reason"]) == ("session", "verified")
    assert (ended["event"], ended["sessions"]) == ("ended", 1)
    assert serve.returncode == 0


def test_a_pull_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with serving(WEIGHTS) as server:
        where = str(server.endpoint)
        refused = netloader("pull", where, "--out", str(taken), "--json")
        role = inside("pull", where, "--out", str(tmp_path / "new"), "--role", "draft")
        server.withdraw(None, "maintenance")
        gone = inside("pull", where, "--out", str(tmp_path / "new"), "--json")
    assert refused.code == 5
    assert "is not empty" in refused.data["error"]
    assert gone.code == 4
    assert "maintenance" in gone.data["error"]
    assert role.code == 4
    assert "has no role 'draft'" in role.err
    assert os.listdir(tmp_path) == ["taken"]  # noqa: PTH208 - hidden ones too


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("config", "check", '{"LANES": 4}'), 0, "valid"),
        (("config", "check", '{"LANES": 99, "SOURSE": []}'), 1, "did you mean SOURCE?"),
        (("config", "check", "{"), 1, "no JSON"),
        (("config", "check", "@nowhere.json"), 2, "nowhere.json"),
        (("diagram", "model"), 0, "stateDiagram-v2"),
        (("diagram", "server", "--format", "table"), 0, "| VALIDATE | Request |"),
        (("diagram", "engine"), 2, "engine"),
        (("status", "no port"), 2, "write host:port"),
        (("status", "127.0.0.1:1", "--timeout", "-1"), 2, "--timeout"),
        (("serve", "nowhere"), 5, "nowhere is no folder"),
        (("serve", ".", "--identity", "model"), 2, "write name=value"),
        (("status", "h:1", "--token-file", "gone"), 2, "--token-file gone cannot be used: No such"),
        (("pull", "127.0.0.1:1"), 2, "--out"),
        (("--version",), 0, "netloader"),
    ],
)
def test_answers_and_refusals(words: tuple[str, ...], code: int, says: str) -> None:
    ran = inside(*words)
    assert ran.code == code, ran
    assert says in ran.out + ran.err


def test_the_check_of_a_configuration_names_all_problems_at_once() -> None:
    given: dict[str, Any] = {"LANES": 99, "MAX_CLIENTS": 0, "SEGMENT_MIB": "big"}
    ran = inside("config", "check", "-", "--json", stdin=json.dumps(given))
    assert ran.code == 1
    assert len(ran.data["problems"]) == 3


def test_a_served_folder_fills_clients_until_the_command_is_interrupted(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    where = Endpoint("127.0.0.1", free_port())
    received: list[Outcome] = []

    def client() -> None:
        memory = HostStore(ModuleStore(sorted(WEIGHTS.items())).manifest)

        def filled() -> bool:
            received.append(fill(memory, where, {"model": tmp_path.name}, asking()))
            return received[-1].ok

        try:
            eventually(filled, 60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client)
        ran = inside("serve", str(tmp_path), "--port", str(where.port))
        asked.result()
    assert received[-1].ok, ran
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "Ended: 1 sessions, 240 kB sent")
    assert f"in {tmp_path} at {where}; stop with Ctrl-C" in ran.out


def test_what_a_folder_cannot_be_served_with_is_refused_by_its_name(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    with serving(WEIGHTS) as other:
        taken = inside("serve", str(tmp_path), "--port", str(other.endpoint.port))
    unneeded = inside("serve", str(tmp_path), "--checkpoint", str(tmp_path))
    busy = f"{other.endpoint} cannot be opened: Address already in use; give another --port"
    assert (taken.code, busy in taken.err) == (5, True)
    assert (unneeded.code, "--checkpoint" in unneeded.err) == (2, True)


def test_a_served_folder_of_files_has_its_name_as_identity(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    serve = subprocess.Popen(
        [*COMMAND, "serve", str(folder), "--identity", "dtype=float32", "--json"],
        env=environment(NETLOADER_TOKEN=TOKEN),
        stdout=subprocess.PIPE,
        text=True,
    )
    with serve:
        assert serve.stdout is not None
        where = json.loads(serve.stdout.readline())["endpoint"]
        told = inside("status", where, "--json", env={"NETLOADER_TOKEN": TOKEN})
        stranger = inside("status", where)
        serve.send_signal(signal.SIGINT)
        serve.stdout.read()
    assert told.data["models"][0]["identity"] == {"model": "llama", "dtype": "float32"}
    assert stranger.code == 4


def test_top_watches_many_and_says_who_does_not_answer() -> None:
    with serving(WEIGHTS, {"model": "a"}) as server:
        where = str(sealed(server).endpoint)
        words = ("top", where, str(closed_port()), "--interval", "0.1")
        told = inside(*words, "--times", "2", "--json")
        shown = inside(*words, "--times", "1", env={"COLUMNS": "140"})
    first, second, end = map(json.loads, told.out.splitlines())
    assert [line.get("state") for line in first["servers"]] == ["offered", None]
    assert "unreachable" in second["servers"][1]["error"]
    assert (end["looks"], told.code) == (2, 0)
    assert "offered" in shown.out
    assert "no answer" in shown.out
    assert inside("top", str(closed_port()), "--times", "1").code == 3


def test_top_shows_the_rate_between_two_looks() -> None:
    wanted = {name: torch.zeros_like(tensor) for name, tensor in WEIGHTS.items()}
    with serving(WEIGHTS, {"model": "a"}) as server:
        watch = Watch([str(sealed(server).endpoint)], asking())
        (before,) = watch.look()
        assert fill(wanted, server.endpoint, {"model": "a"}, asking()).ok
        assert eventually(lambda: server.snapshot().models[0].sent_bytes > 0)
        (after,) = watch.look()
    assert before.bytes_per_s == 0
    assert after.bytes_per_s > 0


def test_bench_measures_this_host_and_a_server() -> None:
    alone = inside("bench", "--size", "4", "--times", "2", "--json")
    assert (alone.code, alone.data["bytes"]) == (0, 4 << 20)
    assert len(alone.data["seconds"]) == 2
    with serving(WEIGHTS, {"model": "a"}) as server:
        there = inside("bench", str(server.endpoint), "--times", "1")
    assert there.code == 0
    assert "verified" in there.out
    assert inside("bench", str(closed_port())).code == 3
