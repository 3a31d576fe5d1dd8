"""What others are told of where a server is: only what they can connect to, and only once true."""

import atexit
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from torch import nn

from netloader.config import Endpoint
from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.listener import bind
from netloader.log import capture
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.serve import address
from tests.support.children import process
from tests.unit.io.helpers import asking
from tests.unit.vllm_plugin.helpers import Model, events, identity, line_of, serve, settings, where

ROOT = Path(__file__).parents[4]
FAILED = "netloader.address_file.failed"

pytestmark = pytest.mark.usefixtures("worker_process")


class Interface(NamedTuple):
    """An address as psutil tells it."""

    family: int
    address: str


def everywhere(tmp_path: Path) -> Settings:
    return settings(listen_host=None, output_prefix=f"{tmp_path}/r-")


def interfaces(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """A host on which vLLM finds no address, with these on its interfaces."""
    found = {f"eth{i}": [Interface(10 if ":" in h else 2, h)] for i, h in enumerate(hosts)}
    monkeypatch.setattr(address, "get_ip", lambda: "0.0.0.0")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)


def test_a_server_listens_at_the_address_that_it_tells_and_at_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.7")
    module = nn.Linear(4, 4)
    serve(module, everywhere(tmp_path))
    here = Endpoint.parse((tmp_path / "r-0.txt").read_text())
    assert here.host == "127.0.0.7"
    assert fill(nn.Linear(4, 4), [here], identity(), asking()).ok
    other = fill(nn.Linear(4, 4), [Endpoint("127.0.0.1", here.port)], identity(), asking())
    assert other.attempts[0].reason is Reason.UNREACHABLE


def test_a_star_means_every_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.7")
    module = nn.Linear(4, 4)
    serve(module, settings(listen_host="*", output_prefix=f"{tmp_path}/r-"))
    told = Endpoint.parse((tmp_path / "r-0.txt").read_text())
    assert told.host == "127.0.0.7"
    for host in ("127.0.0.7", "127.0.0.1"):
        here = Endpoint(host, told.port)
        assert fill(nn.Linear(4, 4), [here], identity(), asking()).ok


def test_an_address_that_is_not_this_host_s_is_named_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "192.0.2.7")
    with capture() as lines:
        module = nn.Linear(4, 4)
        serve(module, everywhere(tmp_path))
    line = line_of(lines, "netloader.listener.failed")
    assert line["network.local.address"] == "192.0.2.7"
    assert "'*'" in line["netloader.remedy"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nowhere", ["0.0.0.0", "::", ""])
def test_an_address_that_nobody_can_dial_is_told_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    interfaces(monkeypatch, "127.0.0.1", "::1", "fe80::1%eth0")
    monkeypatch.setattr(address, "get_ip", lambda: nowhere)
    module = nn.Linear(4, 4)
    with capture() as lines:
        serve(module, everywhere(tmp_path))
    assert list(tmp_path.iterdir()) == []
    line = line_of(lines, "netloader.address.unknown")
    assert line["severity"] == "WARNING"
    assert "VLLM_HOST_IP" in line["netloader.remedy"]
    assert "LISTEN_HOST" in line["netloader.remedy"]
    values = {str(value) for line in lines for value in line.values()}
    assert not [v for v in values if v.startswith(("0.0.0.0", "::", "[::]"))]
    here = Endpoint("127.0.0.1", line["network.local.port"])
    assert fill(nn.Linear(4, 4), [here], identity(), asking()).ok  # it serves all the same


@pytest.mark.parametrize(
    ("hosts", "told"),
    [
        (("127.0.0.1", "10.1.2.3"), "10.1.2.3:7"),
        (("::1", "fe80::1%eth0", "fd00::5"), "[fd00::5]:7"),
        (("fd00::5", "169.254.3.4", "192.168.7.8"), "192.168.7.8:7"),
        (("127.0.0.1",), "None"),
        ((), "None"),
    ],
)
def test_where_vllm_finds_no_address_the_interfaces_are_asked(
    monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...], told: str
) -> None:
    interfaces(monkeypatch, *hosts)
    assert str(address.told(Endpoint("::", 7))) == told
    assert str(address.told(Endpoint("0.0.0.0", 7))) == told
    assert address.told(Endpoint("127.0.0.1", 7)) == Endpoint("127.0.0.1", 7)


def test_what_the_operator_says_is_told_even_if_it_is_the_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.7")
    assert address.told(Endpoint("::", 7)) == Endpoint("127.0.0.7", 7)


def test_in_a_namespace_with_nothing_but_a_loopback_no_address_is_told() -> None:
    code = "from netloader.config import Endpoint; "
    code += "from netloader.vllm_plugin.serve import address; "
    code += "print(address.told(Endpoint('::', 7)))"
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], check=False).returncode:
        pytest.skip("no network namespace may be made here")
    environment = {**os.environ, "VLLM_HOST_IP": ""}
    command = [unshare, "--net", sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split()[-1] == "None"


# -- the file ------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "r-0.txt").mkdir()
    models = nn.Linear(4, 4), nn.Linear(4, 4)
    with capture() as lines:
        for module in models:
            serve(module, settings(output_prefix=f"{tmp_path}/r-"))
    assert [path.name for path in tmp_path.iterdir()] == ["r-0.txt"]
    failed = [line for line in lines if line["event"] == FAILED]
    assert len(failed) == 2
    assert "r-0.txt" in failed[0]["netloader.detail"]
    assert "netloader.listener.failed" not in events(lines)


def test_a_disk_that_is_full_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "chmod", full)
    module = nn.Linear(4, 4)
    with capture() as lines:
        serve(module, settings(output_prefix=f"{tmp_path}/r-"))
    assert list(tmp_path.iterdir()) == []
    assert "No space left" in line_of(lines, FAILED)["netloader.detail"]


def test_a_prefix_that_is_not_utf_8_or_no_name_at_all_stops_nobody(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/r\xff-")
    module, other = nn.Linear(4, 4), nn.Linear(4, 4)
    serve(module, settings(output_prefix=odd))
    assert Endpoint.parse(Path(f"{odd}0.txt").read_text()) == where()
    with capture() as lines:
        serve(other, settings(output_prefix=f"{tmp_path}/\udcff\0\ud800"))
    assert FAILED in events(lines)
    assert "netloader.server.offered" in events(lines)


# -- a forked child ------------------------------------------------------------------------------


def end_as_usual() -> None:
    atexit._run_exitfuncs()


@pytest.mark.parametrize("end", ["atexit", "the model goes"])
def test_a_forked_child_that_ends_takes_nothing_of_the_server_along(
    tmp_path: Path, end: str
) -> None:
    models = [Model()]
    serve(models[0], settings(output_prefix=f"{tmp_path}/r-"))
    file = tmp_path / "r-0.txt"
    told = file.read_text()
    if (child := os.fork()) == 0:
        try:
            if end == "atexit":
                end_as_usual()
            else:
                models.clear()
                gc.collect()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert file.read_text() == told
    assert fill(Model(2), [where()], identity(), asking()).ok


# -- who has the port ----------------------------------------------------------------------------


def failure(port: int) -> dict[str, Any]:
    """The line about a port that is taken."""
    module = nn.Linear(4, 4)
    with capture() as lines:
        serve(module, settings(listen_port=port))
    return line_of(lines, "netloader.listener.failed")


def test_a_port_that_is_taken_is_told_with_the_process_that_has_it() -> None:
    with bind("127.0.0.1", 0) as taken:
        line = failure(taken.getsockname()[1])
    holder = line["netloader.holder"]
    assert holder.startswith(f"process {os.getpid()} (")
    assert "left over" not in holder
    assert "LISTEN_PORT" in line["netloader.remedy"]


ORPHAN = """
    import os, signal, socket
    if os.fork():
        os._exit(0)
    first = os.getppid()
    while os.getppid() == first and first != 1:
        os.sched_yield()
    listener = socket.create_server(("127.0.0.1", 0))
    print(os.getpid(), os.getppid(), listener.getsockname()[1], flush=True)
    signal.pause()
"""


def test_a_worker_whose_parent_was_killed_is_told_as_left_over() -> None:
    with process(ORPHAN) as parent:
        assert parent.stdout is not None
        pid, adopted_by, port = map(int, parent.stdout.readline().split())
        try:
            if adopted_by != 1:
                pytest.skip("orphans go to another process here")
            holder = failure(port)["netloader.holder"]
        finally:
            os.kill(pid, signal.SIGKILL)
    assert holder.startswith(f"process {pid} (")
    assert "left over from an instance that was killed" in holder


def test_of_a_command_line_only_the_first_words_are_shown() -> None:
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
    code += "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, "--api-key", "sk-secret"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        line = failure(int(child.stdout.readline()))
        child.kill()
    assert f"process {child.pid} (" in line["netloader.holder"]
    assert "sk-secret" not in json.dumps(line)
