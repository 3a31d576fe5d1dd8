"""One vLLM server hands its weights to a second one that has none; both must answer the same.

Run it with `make demo`, or `python -m demo.demo` once the model is prepared. Ends with 0 only if
the second server got every byte from the first and all answers are equal, token by token.
"""

import fcntl
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from demo.paths import BARE_MODEL, CHECKOUT, MODEL, MODEL_NAME, ROOT, RUN, shown, weight_files
from demo.report import Answer, Exchange, client_session, print_report, troubles
from demo.servers import (
    DemoError,
    Server,
    cpu_shares,
    free_ports,
    signal_group,
    start_server,
    stop_server,
    vllm_command,
    wait_until_healthy,
)

PROMPTS: Final = (
    "What is the capital of France?",
    "What is two plus three?",
    "Name the three primary colours.",
    "Write one sentence about the sea.",
    "Who wrote Romeo and Juliet?",
)
MAX_TOKENS: Final = 24
ENDPOINT_DEADLINE_S: Final = 30.0
"""For the server to say where it listens, once it is healthy: it does so while it loads."""


def main() -> int:
    """Run the demo; 0 if the weights moved and all answers are equal."""
    # Set, not inherited: started in the background, we and our servers would be deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    began = time.monotonic()
    try:
        with only_one(), running() as servers:
            same = demonstrate(servers)
    except DemoError as error:
        print(f"\ndemo: {error}{troubles(RUN)}", file=sys.stderr)
        print("\nidentical: NO (the demo did not get that far)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    print(f"the demo took {time.monotonic() - began:.0f} s")
    return 0 if same else 1


def leave(number: int, _frame: FrameType | None) -> None:
    """End by way of every `finally`, so that the servers are stopped."""
    sys.exit(128 + number)


@contextmanager
def only_one() -> Iterator[None]:
    """Keep a second demo out of this checkout, and begin with an empty folder for the run."""
    if not MODEL.is_dir() or not BARE_MODEL.is_dir():
        raise DemoError("the model is not there yet; run `make demo`")
    if found := weight_files(BARE_MODEL):
        raise DemoError(f"{shown(found[0])} would make the client's success worth nothing")
    with (ROOT / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("another demo runs in this checkout") from None
        shutil.rmtree(RUN, ignore_errors=True)
        RUN.mkdir(parents=True)
        yield


@contextmanager
def running() -> Iterator[list[Server]]:
    """A list of servers, all of which are stopped at the end, whatever the end is."""
    servers: list[Server] = []
    try:
        yield servers
    finally:
        if servers:
            print("==> Stopping the servers (Ctrl-C: at once)", flush=True)
        try:
            for server in reversed(servers):
                print(f"    {server.name}: stopped ({stop_server(server)})", flush=True)
        except BaseException:  # a second Ctrl-C: no more patience
            for server in servers:
                signal_group(server, signal.SIGKILL)
            raise


def demonstrate(servers: list[Server]) -> bool:
    """Start both servers, ask both, report; whether all answers are equal."""
    server_port, client_port = free_ports(2)
    server_cpus, client_cpus = cpu_shares(2)
    extra: dict[str, object] = {"MODEL": MODEL_NAME, "LISTEN_HOST": "127.0.0.1"}

    print(f"==> The server: {MODEL_NAME} from {shown(MODEL)}")
    mine = {"OUTPUT_PREFIX": str(RUN / "server-"), "LOG_JSON": str(RUN / "server.jsonl")}
    command = vllm_command(MODEL, server_port, "netloader", extra | mine)
    server = launch(servers, "server", command, server_port, server_cpus)
    source = endpoint_of_rank_0(server)

    print(f"==> The client: no weight file in {shown(BARE_MODEL)}, source {source}")
    sources = [{"device_id": 0, "sources": [source]}]
    theirs = {"SOURCE": sources, "LOG_JSON": str(RUN / "client.jsonl")}
    command = vllm_command(BARE_MODEL, client_port, "netloader", extra | theirs)
    client = launch(servers, "client", command, client_port, client_cpus)
    session = client_session(RUN / "client.jsonl")

    print(f"==> The same {len(PROMPTS)} prompts to both")
    talks = [Exchange(prompt, ask(server, prompt), ask(client, prompt)) for prompt in PROMPTS]
    return print_report(server, client, session, talks)


def launch(
    servers: list[Server], name: str, command: list[str], port: int, cpus: str | None
) -> Server:
    """Start a server, show how, and wait until it is healthy."""
    print(f"    $ {shlex.join(typed(command))}", flush=True)
    server = start_server(name, command, port, RUN / f"{name}.log", cpus)
    servers.append(server)
    wait_until_healthy(server)
    return server


def typed(command: list[str]) -> list[str]:
    """`command` as a person types it from the checkout, with .venv/bin on the PATH."""
    return [Path(command[0]).name, *(word.replace(f"{CHECKOUT}/", "") for word in command[1:])]


def endpoint_of_rank_0(server: Server) -> str:
    """Where the server hands out its weights: it writes `IP:Port` to a file for each rank."""
    file = RUN / "server-0.txt"
    until = time.monotonic() + ENDPOINT_DEADLINE_S
    while not file.is_file():
        if time.monotonic() > until:
            raise DemoError(f"the server serves, but wrote no {shown(file)}\n{server.tail()}")
        time.sleep(0.1)
    endpoint = file.read_text(encoding="utf-8").strip()
    if not endpoint.rpartition(":")[2].isdigit():
        raise DemoError(f"{shown(file)} holds {endpoint!r}, not IP:Port")
    return endpoint


def ask(server: Server, prompt: str) -> Answer:
    """One chat turn at temperature 0, where equal weights have only one answer."""
    body: Mapping[str, object] = {
        "model": "demo",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "return_token_ids": True,
    }
    choice = server.post("/v1/chat/completions", body)["choices"][0]
    return Answer(
        str(choice["message"]["content"]).strip(),
        tuple(choice.get("token_ids") or ()),
        str(choice["finish_reason"]),
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
