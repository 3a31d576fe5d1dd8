"""Real `vllm serve`s on standby: closed to clients, until something fills them."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.servers import DIRECT, Server, start_server, stop_server, vllm_command
from netloader.cli.standby import on_standby
from netloader.vllm_plugin.inspect.parity.run import PROMPTS
from tests.e2e.engines import ForkServer
from tests.e2e.source_logs import Model, made, serving
from tests.support.ports import free_port
from tests.support.zoo import dense
from tests.unit.cli.helpers import inside
from tests.unit.io.helpers import closed_port, eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

UP_S = 400.0
TOKEN = "sixteen characters and more"
COMMON = {"LISTEN_HOST": "127.0.0.1", "MODEL": "tiny"}


@contextmanager
def standby(
    model: Model, scratch: Path, name: str, words: Sequence[str] = (), **extra: Any
) -> Iterator[Server]:
    """An instance on standby, started as `netloader standby` starts it, with more words."""
    port = free_port()
    command = on_standby([*vllm_command(model.bare, port, "netloader", {**COMMON, **extra})])
    command += ["--skip-tokenizer-init", *words]
    command[command.index("--max-model-len") + 1] = "128"
    server = start_server(name, command, port, scratch / f"{name}.log", None)
    try:
        yield server
    finally:
        stop_server(server)


def in_a_file(path: Path, **extra: Any) -> tuple[str, ...]:
    """The words that an operator writes who keeps all settings in a file, the last word on each."""
    path.write_text(json.dumps({"STANDBY": True, **COMMON, **extra}))
    inline = json.dumps({"CONFIG_FILE": str(path)})
    return "--load-format", "NetLoader", "--model-loader-extra-config", inline


def ask(server: Server, path: str, body: object = None) -> tuple[int, str]:
    """The status and the body of an answer; status 0 where nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, data, headers)
    try:
        with DIRECT.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def complete(server: Server) -> list[Any]:
    """Greedy tokens for PROMPTS, or the statuses of refusals."""
    found = []
    for prompt in PROMPTS:
        given = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        asked = {"model": "demo", **given, "return_token_ids": True, "detokenize": False}
        status, said = ask(server, "/v1/completions", asked)
        found.append(json.loads(said)["choices"][0]["token_ids"] if status == 200 else status)
    return found


def up(server: Server) -> Callable[[], bool]:
    def answers() -> bool:
        assert server.process.poll() is None, server.tail()
        return ask(server, "/netloader/standby")[0] == 200

    return answers


def test_requests_are_refused_until_the_command_or_a_folder_that_appears_has_filled_it(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    model = made(tmp_path / "llama", dense.llama(), 1)
    (tmp_path / "token").write_text(TOKEN)
    token = {"AUTH_TOKEN_FILE": str(tmp_path / "token")}
    looks = {"SOURCE": [str(closed_port()), f"file:{tmp_path}/saved"]}
    with ExitStack() as stack:
        two = ("--api-server-count", "2")
        told = stack.enter_context(standby(model, tmp_path, "told", two, **token))
        kept = in_a_file(tmp_path / "settings.json", **token, **looks)
        looking = stack.enter_context(standby(model, tmp_path, "looking", kept))
        for server in (told, looking):
            assert eventually(up(server), UP_S), server.tail()
            assert complete(server) == [503, 503]
            status, said = ask(server, "/health")
            assert (status, json.loads(said)["state"]) == (503, "standby")

        where, shown = f"127.0.0.1:{told.port}", {"NETLOADER_TOKEN": TOKEN}
        dead = inside("fill", where, str(closed_port()), "--json", env=shown)
        assert (dead.code, complete(told)) == (5, [503, 503])
        assert "unreachable" in dead.data["error"]

        with serving(fork_server, model.full, tmp_path, extra=token) as (source, at):
            begun = time.monotonic()
            filled = inside("fill", where, *at, "--json", env=shown)
            assert filled.code == 0, (filled.data, told.tail())
            tokens = complete(told)
            print(f"filled and answered in {time.monotonic() - begun:.2f} s")
            assert tokens == source.generate()
            assert ask(told, "/health")[0] == 200
            assert "already" in inside("fill", where, *at, env=shown).out

            assert complete(looking) == [503, 503]
            copied = inside("pull", *at, "--out", str(tmp_path / "saved"), "--json", env=shown)
            assert copied.code == 0, copied.data
        assert eventually(lambda: ask(looking, "/health")[0] == 200, UP_S), looking.tail()
        assert complete(looking) == tokens, "from the folder: its source has ended"
