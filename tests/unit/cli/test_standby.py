"""`netloader standby` starts vLLM so that it waits, `netloader fill` ends the wait."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from netloader.config import Secret
from netloader.io.clock import unix_time
from netloader.secure.request_proof import HttpRequest
from tests.unit.cli.helpers import inside, netloader
from tests.unit.io.helpers import closed_port

TOKEN = "sixteen characters and more"
SOURCE = "10.0.0.1:19374"
FILLED = {"rank": 0, "filled": True, "bytes": 1_000_000}


@contextmanager
def instance(status: int, said: object) -> Iterator[tuple[str, list[Any]]]:
    """An HTTP API that answers so; where it is, and what it was asked with which header."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, body, self.headers["Authorization"]))
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def test_fill_says_what_arrived_to_people_and_to_programs() -> None:
    with instance(200, {"state": "filled", "why": "", "ranks": [FILLED]}) as (where, asked):
        told = inside("fill", where, SOURCE, "--json", env={"NETLOADER_TOKEN": TOKEN})
        shown = inside("fill", f"http://{where}")
    assert (told.code, shown.code) == (0, 0)
    assert (told.data["state"], told.data["bytes"]) == ("filled", 1_000_000)
    assert "is filled: 1 MB in 1 rank" in shown.out
    (path, body, header), other = asked
    assert (path, json.loads(body)) == ("/netloader/fill", {"source": [SOURCE]})
    assert TOKEN not in header, "it does not cross the wire"
    HttpRequest("POST", path, body).check(header.encode(), [Secret(TOKEN)], unix_time())
    assert (other[0], json.loads(other[1]), other[2]) == (path, {"source": []}, None)


def test_an_instance_that_has_its_weights_is_told_so() -> None:
    with instance(200, {"state": "filled", "ranks": [{**FILLED, "bytes": 0}]}) as (where, _):
        assert "had its weights already" in inside("fill", where).out


@pytest.mark.parametrize(
    ("status", "said", "code", "words"),
    [
        (502, {"state": "standby", "why": "rank 1: unreachable"}, 5, "stays on standby: rank 1"),
        (404, {"detail": "Not Found"}, 4, "is no instance on standby"),
        (401, {"error": {"message": "show a token"}}, 4, "NETLOADER_TOKEN"),
        (403, {"error": {"message": "set AUTH_TOKEN_FILE"}}, 4, "403: set AUTH_TOKEN_FILE"),
        (200, b"<html>", 4, "is no HTTP API of an instance on standby"),
        (200, {"choices": []}, 4, "is no HTTP API of an instance on standby"),
        (200, b"[" * 100_000, 4, "is no HTTP API of an instance on standby"),
        (302, b"", 4, "it answers 302"),
        (400, {"error": "who are you?"}, 4, "400: who are you?"),
        (422, {"error": None, "detail": [{"msg": "missing"}]}, 4, "missing"),
        (405, [1], 4, "it answers 405"),
        (500, b"Internal Server Error", 5, "answers 500: it gives no reason"),
        (502, b"<html>", 5, "answers 502"),
        (503, {"error": {"message": "busy"}}, 5, "503: busy"),
    ],
)
def test_why_it_was_not_filled_has_an_exit_status(
    status: int, said: object, code: int, words: str
) -> None:
    with instance(status, said) as (where, _):
        ran = inside("fill", where, "--json")
    assert ran.code == code
    assert words in ran.data["error"]


def test_a_token_that_is_refused_is_refused_with_the_reason_of_the_instance() -> None:
    with instance(401, {"error": {"message": "set the clocks"}}) as (where, _):
        ran = inside("fill", where, "--json", env={"NETLOADER_TOKEN": TOKEN})
    assert (ran.code, ran.data["error"]) == (4, f"{where} refuses: set the clocks")


def test_where_nobody_answers_and_where_nobody_could() -> None:
    assert inside("fill", str(closed_port())).code == 3
    assert inside("fill", "ftp://10.0.0.1:21").code == 2
    assert inside("fill", "nonsense").code == 2


def test_standby_adds_what_makes_vllm_wait() -> None:
    extra = '{"LISTEN_PORT": 19374, "STANDBY": false}'
    words = ["vllm", "serve", "./llama", "--model-loader-extra-config", extra, "--port", "8000"]
    ran = inside("standby", "--dry-run", "--json", "--", *words)
    assert ran.code == 0
    *before, option, value = ran.data["command"]
    assert before == [
        *("vllm", "serve", "./llama", "--port", "8000"),
        *("--load-format", "netloader"),
    ]
    assert option == "--model-loader-extra-config"
    assert json.loads(value) == {"LISTEN_PORT": 19374, "STANDBY": True}


@pytest.mark.parametrize(
    ("option", "code", "said"),
    [
        ("--load-format=auto", 2, "needs --load-format netloader"),
        ("--model-loader-extra-config=nonsense", 1, "JSON"),
    ],
)
def test_a_command_that_cannot_wait_is_refused(option: str, code: int, said: str) -> None:
    ran = inside("standby", "--dry-run", "--json", "--", "vllm", "serve", "x", option)
    assert ran.code == code
    assert said in ran.data["error"]


def test_the_command_is_run_in_the_place_of_this_one() -> None:
    ran = netloader("standby", "--", "echo", "serve", "x")
    assert ran.code == 0
    assert ran.out.startswith("serve x --load-format netloader --model-loader-extra-config")
    assert netloader("standby", "--", "no-such-program").code == 2
