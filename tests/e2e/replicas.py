"""Data parallel replicas of a dense model, each an engine of its own as vLLM's server has them.

Run as `python -m tests.e2e.replicas`. Each line of its input is an order (JSON: `log`, `replicas`,
`llm`); to each it answers with one line, the tokens of each replica. All end when the input does.
"""

import asyncio
import importlib
import json
import multiprocessing
import os
import sys
from contextlib import aclosing
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from netloader.vllm_plugin.inspect.parity.engine import print_to
from netloader.vllm_plugin.inspect.parity.run import PROMPTS
from tests.e2e.fork_server import INHERITED, _stay_in_process


async def answers(llm: AsyncLLM, replica: int) -> list[list[int]]:
    """Greedy tokens for PROMPTS by one replica."""
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    tokens: list[list[int]] = []
    for number, ids in enumerate(PROMPTS):
        prompt = {"prompt_token_ids": list(ids)}
        name = f"{replica}-{number}"
        asked = llm.generate(prompt, greedy, name, data_parallel_rank=replica)
        async with aclosing(asked) as outputs:
            last: Any = None
            async for output in outputs:
                last = output
        tokens.append(list(last.outputs[0].token_ids))
    return tokens


async def live(arguments: dict[str, Any], replicas: int, out: int) -> None:
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(data_parallel_size=replicas, **arguments))
    told = [await answers(llm, replica) for replica in range(replicas)]
    os.write(out, f"{json.dumps(told)}\n".encode())
    parent: Any = multiprocessing.parent_process()
    await asyncio.get_running_loop().run_in_executor(None, parent.join)
    llm.shutdown()


def begin(line: str, out: int) -> None:
    order = json.loads(line)
    print_to(order["log"])
    asyncio.run(live(order["llm"], order["replicas"], out))


def main() -> None:
    out = os.dup(1)
    for module in INHERITED:
        importlib.import_module(module)
    _stay_in_process()
    for line in sys.stdin:
        multiprocessing.get_context("fork").Process(target=begin, args=(line, out)).start()
    os._exit(0)  # not joining them is what tells them


if __name__ == "__main__":
    main()
