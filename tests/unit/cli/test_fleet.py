"""Servers that are looked up, TLS, and bars on a terminal: by the command as a user runs it."""

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from netloader.cli.codes import Code
from netloader.discovery.base import Candidate, Key
from netloader.discovery.keys import key_of
from netloader.discovery.urls import registry_of
from netloader.fsm.identity import Identity
from netloader.io.clock import monotonic
from tests.support.pki import Authority
from tests.support.registries import etcd_server, redis_server
from tests.unit.cli.helpers import COMMAND, LONG_S, Ran, environment, inside, not_served
from tests.unit.io.helpers import FAST, SOON_S, closed_port, eventually, sealed, serving

WEIGHTS = {"w": torch.arange(1000.0)}
LEASE_S = 60


@pytest.fixture(params=["redis", "etcd"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty registry."""
    real = redis_server() if request.param == "redis" else etcd_server(tmp_path)
    with real as (where, _):
        yield f"{request.param}://{where}/fl[ee]t"


def test_a_registry_names_the_servers_of_all_models(registry: str) -> None:
    with serving(WEIGHTS, {"model": "a"}) as one, serving(WEIGHTS, {"model": "b"}) as other:
        known = registry_of(registry)
        for server, model in ((one, "a"), (other, "b")):
            place = sealed(server).endpoint
            known.put(Key(f"org/{model}", "0123"), Candidate(place), LEASE_S, SOON_S)
        gone = closed_port()
        known.put(Key("org/a", "0123"), Candidate(gone), LEASE_S, SOON_S)
        status = inside("status", registry, "--json")
        top = inside("top", registry, "--times", "1", "--json")
        verify = inside("verify", registry, str(other.endpoint), "--json")
    assert {model["identity"]["model"] for model in status.data["models"]} == {"a", "b"}
    assert [str(gone) in problem for problem in status.data["problems"]] == [True]
    assert f'"source": "{gone}", "error"' in top.out
    assert top.out.count('"state": "offered"') == 2
    assert (verify.code, verify.data["same"]) == (0, True)


def test_a_served_folder_is_named_until_it_ends(registry: str, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    words = ("serve", str(folder), "--publish", registry, "--json")
    serve = subprocess.Popen(
        [*COMMAND, *words], env=environment(), stdout=subprocess.PIPE, text=True
    )
    key, known = key_of(Identity({"model": "llama"})), registry_of(registry)
    try:
        assert serve.stdout is not None
        endpoint = json.loads(serve.stdout.readline())["endpoint"]

        def named() -> list[str]:
            return [str(each.endpoint) for each in known.find(key, SOON_S).candidates]

        assert eventually(lambda: named() == [endpoint])
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(LONG_S) == Code.INTERRUPTED or serve.returncode == 0
        assert named() == []
    finally:
        serve.kill()
        serve.communicate()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--publish", "redis://h", "--host", ""), "give --host the address"),
        (("--publish", "http://h"), "--publish: write redis://"),
    ],
)
def test_a_folder_that_cannot_be_named_is_not_served(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    ran = not_served(str(tmp_path), *words)
    assert (ran.code, says in ran.err) == (2, True)


def test_top_follows_a_fleet_that_grows(registry: str) -> None:
    top = subprocess.Popen(
        [*COMMAND, "top", registry, "--interval", "0.2", "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with top, serving(WEIGHTS) as server:
        assert top.stdout is not None
        assert "names no server now" in top.stdout.readline()
        place = Candidate(sealed(server).endpoint)
        registry_of(registry).put(Key("m", "0"), place, LEASE_S, SOON_S)
        seen = next(line for line in top.stdout if "offered" in line)
        top.send_signal(signal.SIGINT)
        top.stdout.read()
    assert str(server.endpoint) in seen


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("redis://127.0.0.1:{free}/x", Code.UNREACHABLE, "cannot be looked up"),
        ("redis://u:secret@127.0.0.1:{free}/x", Code.UNREACHABLE, "cannot be looked up"),
        ("redis://host:99999/secret", Code.USAGE, "the host or the port cannot be used"),
        ("amqp://host/secret", Code.USAGE, "there is no such kind of source"),
        ("file:/nowhere/*", Code.UNREACHABLE, "names no server now"),
        ("file:nowhere", Code.USAGE, "no absolute path"),
        ("file:/usr/lib", Code.USAGE, "serve it with `netloader serve /usr/lib`"),
        ("k8s://a/b", Code.UNREACHABLE, "in no pod"),
        ("10.0.0.1", Code.USAGE, "write host:port"),
    ],
)
def test_what_cannot_be_looked_up_is_named_without_a_secret(
    source: str, code: Code, says: str
) -> None:
    ran = inside("status", source.replace("{free}", str(closed_port().port)), "--timeout", "2")
    assert ran.code == code, ran
    assert says in ran.err
    assert "secret" not in ran.err


def test_a_file_and_a_name_are_sources(tmp_path: Path) -> None:
    with serving(WEIGHTS) as server:
        (tmp_path / "rank0").write_text(f"{sealed(server).endpoint}\n")
        by_file = inside("status", f"file:{tmp_path}/rank*", "--json")
        by_name = inside("status", f"localhost:{server.endpoint.port}", "--json")
    assert (by_file.code, by_name.code) == (0, 0)


# -- TLS -------------------------------------------------------------------------------------------


def test_tls_by_option_and_by_variable_and_what_a_stranger_is_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path).make()
    pem, key = map(str, authority.issue("here"))
    given = ("--tls-cert", pem, "--tls-key", key, "--tls-ca", str(authority.pem))
    names = ("NETLOADER_TLS_CERT", "NETLOADER_TLS_KEY", "NETLOADER_TLS_CA")
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    serve = subprocess.Popen(
        [*COMMAND, "serve", str(folder), *given, "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with serve:
        assert serve.stdout is not None
        where = re.findall(r"127.0.0.1:\d+", serve.stdout.readline())[0]
        by_option = inside("status", where, *given, "--json")
        by_variable = inside("status", where, env=dict(zip(names, given[1::2], strict=True)))
        pulled = inside("pull", where, "--out", str(tmp_path / "out"), *given)
        plain = inside("status", where)
        unknown = inside("status", where, "--tls-ca", str(authority.pem))
        serve.send_signal(signal.SIGINT)
        serve.stdout.read()
    assert (by_option.code, by_variable.code, pulled.code) == (0, 0, 0), pulled
    assert (plain.code, unknown.code) == (Code.REFUSED, Code.UNREACHABLE)
    assert "--tls-ca" in plain.err
    missing = inside("status", where, "--tls-ca", str(tmp_path / "nothing.pem"))
    assert (missing.code, "--tls-ca" in missing.err) == (Code.USAGE, True)
    lonely = not_served(str(folder), "--tls-ca", str(authority.pem))
    assert (lonely.code, "certificate" in lonely.err) == (Code.USAGE, True)


# -- a terminal ------------------------------------------------------------------------------------


def on_terminal(*words: str, until: str = "") -> Ran:
    """Run a command on a terminal of its own; interrupt it when it has written `until`."""
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm-256color", COLUMNS="80")
    process = subprocess.Popen([*COMMAND, *words], env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written, end = b"", monotonic() + LONG_S
    while monotonic() < end:
        try:
            written += os.read(ours, 1 << 16)
        except OSError:  # the other end was closed
            break
        if until and until.encode() in written:
            process.send_signal(signal.SIGINT)
            until = ""
    os.close(ours)
    return Ran(process.wait(LONG_S), written.decode(errors="replace"), "")


SHOWN = re.compile(r"\d+(\.\d+)?/\d+(\.\d+)? [kMG]?B.*\d [kMG]?B/s.*\d:\d\d:\d\d")
"""Bytes of all bytes, the rate, and the time that is left."""


def sparse(folder: Path, nbytes: int) -> Path:
    """A folder with one tensor of zeros, which takes no space on the disk."""
    entry = {"w": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}
    header = json.dumps(entry).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + nbytes)
    return folder


def test_pull_and_serve_show_rate_and_time_left(tmp_path: Path) -> None:
    weights = {f"w{i}": torch.full((1 << 20,), i, dtype=torch.uint8) for i in range(24)}
    slow = replace(FAST, min_rate_bytes_per_s=1 << 20)
    out = str(tmp_path / "out")
    with serving(weights, {"model": "a"}, max_bandwidth="16MB/s", deadlines=slow) as server:
        pulled = on_terminal("pull", str(sealed(server).endpoint), "--out", out)
    large = sparse(tmp_path / "large", 4 << 30)
    served = on_terminal("serve", str(large), until="stop with Ctrl-C")

    assert (pulled.code, served.code) == (0, 0), pulled
    for ran, title in ((pulled, "pulling out"), (served, "hashing large")):
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", ran.out).split("\r")
        assert any(title in line and SHOWN.search(line) for line in lines), ran.out


def test_a_shell_completes_the_kinds_of_sources() -> None:
    ran = subprocess.run(
        COMMAND,
        env=environment(
            _NETLOADER_COMPLETE="complete_bash",
            COMP_WORDS="netloader status red",
            COMP_CWORD="2",
            _TYPER_COMPLETE_ARGS="netloader status red",
        ),
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert ran.stdout.split() == ["redis://", "rediss://"], ran
