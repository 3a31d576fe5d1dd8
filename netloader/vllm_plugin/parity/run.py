"""One case of the comparison, from start to row. Law: engines are given, not made, here."""

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netloader.vllm_plugin.parity.engine import Engine, EngineError, erase
from netloader.vllm_plugin.parity.rows import Row, Seen, compare, notices

PROMPTS = ((5, 6, 7, 8), (9, 10, 11))
"""Token ids, so no tokenizer is needed; every vocabulary has them."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")

Start = Callable[[Path, Mapping[str, Any], Mapping[str, Any]], AbstractContextManager[Engine]]
"""Starts an engine: model folder, netloader's extra config, further arguments of `vllm.LLM`."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be compared; `tokens` is 0 for a model that loads here but cannot answer."""

    model: str
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 8

    @property
    def ranks(self) -> int:
        """How many ranks an engine has."""
        return int(self.options.get("tensor_parallel_size", 1))


def examine(case: Case, start: Start, scratch: Path) -> Row:
    """Fill one engine from disk and another one from the first, and compare them.

    Raises:
        EngineError: an engine broke down, and not because netloader refused.
    """
    common = {"MODEL": case.model, "LISTEN_HOST": "127.0.0.1", **case.extra}
    prefix = scratch / "rank-"
    serving = {**common, "OUTPUT_PREFIX": str(prefix)}
    with start(case.folder, serving, case.options) as server:
        partition = f"TP {case.ranks}" if case.ranks > 1 else "-"
        facts = (server.facts["dtype"], server.facts["quantization"])
        row = Row(case.model, *facts, partition, **_offer_in(server.log()))
        files = [Path(f"{prefix}{rank}.txt") for rank in range(case.ranks)]
        if not all(file.exists() for file in files):
            return replace(row, refusal=_refusal_in(server.log()))
        sources = [
            {"device_id": rank, "sources": [file.read_text()]} for rank, file in enumerate(files)
        ]
        receiving = {**common, "SOURCE": sources, "FALLBACK": "never"}
        bare = without_weights(case.folder, scratch / "bare")
        expected = look(server, case)
        with contextlib.ExitStack() as stack:
            try:
                client = stack.enter_context(start(bare, receiving, _bare_options(case, scratch)))
            except EngineError as error:
                return replace(row, refusal=_refusal_in(str(error)))
            return _compared(row, expected, client, case)


def _compared(row: Row, expected: Seen, client: Engine, case: Case) -> Row:
    seen = look(client, case)
    row = replace(row, **compare(expected, seen))
    noticed = True
    for role in sorted(seen.held[0]):  # the draft first: without a target nothing is accepted
        client.tell(do="rpc", method=erase, args=(role,))
        noticed = noticed and notices(role, seen, look(client, case))
    return replace(row, noticed=noticed)


def look(engine: Engine, case: Case) -> Seen:
    """All that an engine shows."""
    held = engine.tell(do="inventory")
    if not case.tokens:
        return Seen(held, (), (), (0, 0))
    said = engine.tell(do="generate", prompts=PROMPTS, tokens=case.tokens)
    return Seen(held, *said)


def without_weights(folder: Path, target: Path) -> Path:
    """A copy of a model folder as a client has it: everything but the weights."""
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copy(file, target)
    return target


def _bare_options(case: Case, scratch: Path) -> dict[str, Any]:
    """The client's options: a draft model's folder has no weights there either."""
    options = dict(case.options)
    draft = options.get("speculative_config") or {}
    if "model" in draft:
        bare = without_weights(Path(draft["model"]), scratch / "bare-draft")
        options["speculative_config"] = {**draft, "model": str(bare)}
    return options


def _fields(line: str) -> dict[str, str]:
    """The fields of a log line: `key=value`, or `key="a value"`."""
    found = re.findall(r'([\w.]+)=(?:"((?:[^"\\]|\\.)*)"|(\S+))', line)
    return {key: quoted or bare for key, quoted, bare in found}


def _lines(log: str, event: str) -> list[dict[str, str]]:
    return [_fields(line) for line in log.splitlines() if f"{event} " in line]


def _offer_in(log: str) -> dict[str, Any]:
    """What all ranks together offer, and what that costs, as fields of a `Row`."""
    offers = _lines(log, "netloader.server.offered")
    return {
        "layout": "+".join(sorted({offer["netloader.layout"] for offer in offers})) or "-",
        "nbytes": sum(int(offer["netloader.raw_bytes"]) for offer in offers),
        "cached": sum(int(offer["netloader.cached_bytes"]) for offer in offers),
    }


def _refusal_in(text: str) -> str:
    """Why there was no offer, or nothing was received: the last reason given in a log.

    Raises:
        EngineError: there is none, so something else is wrong.
    """
    reasons = [line["netloader.detail"] for line in _lines(text, "netloader.server.refused")]
    reasons += re.findall(r"NoWeightsError: (?:.*no source delivered: )?(?:\S+:\d+: )?(.*)", text)
    if not reasons:
        raise EngineError(f"no reason is given in: {text}")
    return reasons[-1]
