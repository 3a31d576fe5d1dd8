"""`netloader run`: files from a real server, and the command that vLLM gets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.config import Endpoint, Secret
from netloader.files.folder import FolderFiles, store_of
from netloader.files.hints import publish_hints
from netloader.io import Server, listen
from netloader.io.publishing import ServerOptions
from tests.unit.cli.helpers import Ran, inside, netloader
from tests.unit.io.helpers import FAST, closed_port, sealed

TOKEN = "sixteen characters and more"
FILES = {"config.json": b"{}", "tokenizer.json": b"[1, 2]"}
VLLM = ("--", "vllm", "serve", "--port", "8000")


@contextmanager
def offering(
    contents: dict[str, bytes] = FILES, served: str = "public", **options: Any
) -> Iterator[Server]:
    """A server of weights that offers files, too."""
    chosen = ServerOptions(**{"deadlines": FAST, **options})
    with listen(options=chosen) as server:
        server.publish({"w": torch.ones(9)}, {"model": "inner", "role": "target"})
        server.offer(FolderFiles(store_of(contents), "inner", served, {}).publish(chosen))
        yield sealed(server)


def dry(where: Endpoint, cache: Path, *words: str) -> Ran:
    """What vLLM would be started with."""
    environment = {"NETLOADER_CACHE": str(cache)}
    return inside("run", str(where), "--dry-run", "--json", *words, env=environment)


def settings_in(command: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command[command.index("--model-loader-extra-config") + 1])
    return found


def test_vllm_gets_the_folder_the_source_and_the_name_and_no_code(tmp_path: Path) -> None:
    with offering() as server:
        ran = dry(server.endpoint, tmp_path, *VLLM)
        where = str(server.endpoint)
    assert (ran.code, ran.err) == (0, "")
    command = ran.data["command"]
    assert command[:2] == ["vllm", "serve"]
    folder = Path(command[2])
    assert folder.parent == tmp_path / "files"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert command[3:5] == ["--port", "8000"]
    assert "--served-model-name=public" in command
    assert "--no-trust-remote-code" in command
    assert command[command.index("--load-format") + 1] == "netloader"
    assert settings_in(command) == {"SOURCE": where, "MODEL": "inner"}


def test_what_the_command_says_itself_wins(tmp_path: Path) -> None:
    own = {"SOURCE": "file:/elsewhere", "RELAY": True}
    words = (
        *VLLM,
        "--load_format=netloader",
        *("--served_model_name", "mine", "ours"),
        f"--model-loader-extra-config={json.dumps(own)}",
    )
    with offering() as server:
        command = dry(server.endpoint, tmp_path, *words).data["command"]
    assert [word for word in command if word.startswith("--served")] == ["--served_model_name"]
    assert command.count("--load-format") == 1
    assert "--load_format=netloader" not in command
    assert settings_in(command) == {"MODEL": "inner", **own}


def test_what_a_file_of_options_says_wins_as_well(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    own = {"SOURCE": "file:/elsewhere", "RELAY": True}
    file.write_text(f"served-model-name: [mine]\nmodel-loader-extra-config: {json.dumps(own)}\n")
    with offering() as server:
        ran = dry(server.endpoint, tmp_path / "cache", *VLLM, "--config", str(file))
    command = ran.data["command"]
    assert command[3:7] == ["--port", "8000", "--config", str(file)]
    assert not any(word.startswith("--served") for word in command)
    assert settings_in(command) == {"MODEL": "inner", **own}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--", "python", "-c", "pass"), "give the command that starts vLLM"),
        (("--", "vllm", "serve", "org/model"), "leave the model out"),
        (("--", "vllm", "serve", "--model=org/model"), "leave the model out"),
        ((*VLLM, "--load-format", "auto"), "--load-format auto: there are no weights"),
        ((*VLLM, "--trust_remote_code"), "lets the source run code here; give --trust"),
        ((*VLLM, "--model-loader-extra-config.RELAY", "1"), "as one JSON object"),
        ((*VLLM, "--model-loader-extra-config", '{"RELAY": 7}'), "RELAY"),
    ],
)
def test_what_contradicts_is_refused_before_the_source_is_asked(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    ran = dry(closed_port(), tmp_path, *words)
    assert ran.code == 2
    assert said in ran.data["error"]
    assert list(tmp_path.iterdir()) == []


def test_another_model_than_the_source_has_is_refused(tmp_path: Path) -> None:
    with offering() as server:
        own = ("--model-loader-extra-config", '{"MODEL": "other"}')
        ran = dry(server.endpoint, tmp_path, *VLLM, *own)
        file = tmp_path / "settings.json"
        file.write_text('{"MODEL": "other"}')  # wins over what stands in the command
        filed = ("--model-loader-extra-config", json.dumps({"CONFIG_FILE": str(file)}))
        by_file = dry(server.endpoint, tmp_path, *VLLM, *filed)
    for refused in (ran, by_file):
        assert refused.code == 2
        assert "MODEL is 'other', and the source serves 'inner'" in refused.data["error"]


def test_code_needs_trust(tmp_path: Path) -> None:
    with offering({**FILES, "modeling.py": b"pass"}) as server:
        refused = dry(server.endpoint, tmp_path, *VLLM)
        assert list(tmp_path.iterdir()) == []
        trusted = dry(server.endpoint, tmp_path, "--trust", *VLLM, "--trust-remote-code")
    assert refused.code == 5
    assert "'modeling.py' of the source is code; give --trust" in refused.data["error"]
    assert "nothing was written" in refused.data["error"]
    command = trusted.data["command"]
    assert (Path(command[2]) / "modeling.py").read_bytes() == b"pass"
    assert "--no-trust-remote-code" not in command


def test_the_token_goes_on_as_a_file_and_a_source_that_refuses_has_a_status(
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with offering(token=Secret(TOKEN)) as server:
        ran = dry(server.endpoint, tmp_path / "cache", "--token-file", str(file), *VLLM)
        without = dry(server.endpoint, tmp_path / "none", *VLLM)
        env = {"NETLOADER_TOKEN": TOKEN}
        by_env = inside("run", str(server.endpoint), "--dry-run", *VLLM, env=env)
    assert settings_in(ran.data["command"])["AUTH_TOKEN_FILE"] == str(file)
    assert TOKEN not in ran.out
    assert without.code == 4
    assert (by_env.code, "--token-file" in by_env.err) == (2, True)
    assert dry(closed_port(), tmp_path / "none", *VLLM).code == 3
    assert not (tmp_path / "none").exists()


def test_the_command_replaces_netloader_with_its_status(tmp_path: Path) -> None:
    engine = tmp_path / "vllm"
    engine.write_text('#!/bin/sh\necho "$1 $(cat "$2/config.json") pid $$"\nexit 7\n')
    engine.chmod(0o755)
    with offering() as server:
        env = {"NETLOADER_CACHE": str(tmp_path / "cache")}
        ran = netloader("run", str(server.endpoint), "--", str(engine), "serve", env=env)
    missing = netloader("run", str(closed_port()), "--", "no-vllm", "serve", env=env)
    assert ran.code == 7, ran
    told, said = ran.out.splitlines()
    assert told.startswith(f"2 files, 8 B, from {server.endpoint}, verified: {tmp_path}/cache/")
    assert said.startswith("serve {} pid ")
    assert (missing.code, "no-vllm cannot be run: there is no such" in missing.err) == (2, True)


def test_caches_bring_hints_where_vllm_looks_and_are_asked_for_by_the_instance(
    tmp_path: Path,
) -> None:
    hints = {"modelinfos/vllm-llama.json": b"{}"}
    environment = {"NETLOADER_CACHE": str(tmp_path), "VLLM_CACHE_ROOT": str(tmp_path / "vllm")}
    with offering() as server:
        where = str(server.endpoint)
        none = inside("run", where, "--caches", "--dry-run", *VLLM, env=environment)
        assert f"no hints: {where} offers no hints; set CACHES there" in none.out
        assert not (tmp_path / "vllm").exists()
        server.offer(publish_hints(hints, "inner", ServerOptions(deadlines=FAST)))
        ran = inside("run", where, "--caches", "--dry-run", "--json", *VLLM, env=environment)
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, none.code) == (0, 0)
    assert told[0]["files"] == [*hints]
    assert (tmp_path / "vllm" / "modelinfos" / "vllm-llama.json").read_bytes() == b"{}"
    assert settings_in(told[1]["command"])["CACHES"] is True
