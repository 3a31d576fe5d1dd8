"""A process that has imported vLLM once and forks an engine for every connection.

An engine started this way is up in two seconds instead of twelve. Each connection is one engine:
the first line is its specification, every further line a command; end of file ends it. Run as
`python nursery.py SOCKET`.
"""

import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

Command = dict[str, Any]

INHERITED = (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "netloader.vllm_plugin.loader",
)
"""What every engine imports; here it is imported once, and nothing is started."""


def main(path: str) -> None:
    for module in INHERITED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _child(connection)
        connection.close()


def _child(connection: socket.socket) -> None:
    stream = connection.makefile("rw")
    try:
        spec = json.loads(stream.readline())
        log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(spec["env"])
        for answer in _engine(spec, stream):
            stream.write(json.dumps(answer) + "\n")
            stream.flush()
    except BaseException as error:
        import traceback

        traceback.print_exc()
        stream.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        stream.flush()
    finally:
        os._exit(0)


def _engine(spec: Command, stream: Any) -> Iterator[Command]:
    from vllm import LLM

    # vLLM insists on spawned workers on a CPU; forked ones are as real, and have their imports.
    library: Any = multiprocessing
    real = library.get_context
    library.get_context = lambda method=None: real("fork" if method == "spawn" else method)
    llm = LLM(**spec["llm"])
    yield {"ready": True}
    for line in stream:
        yield _obey(llm, json.loads(line))
    llm.llm_engine.engine_core.shutdown()


def _obey(llm: Any, command: Command) -> Command:
    match command:
        case {"do": "generate", "prompts": prompts}:
            return {"tokens": _generate(llm, prompts)}
        case {"do": "checksums"}:
            return {"checksums": llm.collective_rpc("compute_weight_checksums")}
        case _:
            return {"error": f"unknown command {command}"}


def _generate(llm: Any, prompts: list[list[int]]) -> list[list[int]]:
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(o.outputs[0].token_ids) for o in llm.generate(inputs, greedy, use_tqdm=False)]


if __name__ == "__main__":
    main(sys.argv[1])
