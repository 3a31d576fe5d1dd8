"""One case of the comparison, from start to row, with engines that the caller provides."""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netloader.vllm_plugin.inspect.parity.controls import erase, shift
from netloader.vllm_plugin.inspect.parity.engine import Engine, EngineError
from netloader.vllm_plugin.inspect.parity.rows import (
    Row,
    Seen,
    compare,
    notices,
    parts,
    sealed_in,
    told_by,
)

PROMPTS = ((5, 6, 7, 8), (9, 10, 11))
"""Token ids, so no tokenizer is needed; every vocabulary has them."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")

Start = Callable[[Path, Mapping[str, Any], Mapping[str, Any]], AbstractContextManager[Engine]]
"""Starts an engine: model folder, netloader's extra config, further arguments of `vllm.LLM`."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be compared.

    `tokens` is how many a model is to generate, 0 when it is asked nothing: it loads here but
    cannot answer. `client` is the client's folder, None for a copy of `folder` without weights.
    """

    model: str
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 8
    client: Path | None = None

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
        bare = case.client or without_weights(case.folder, scratch / "bare")
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
    noticed = dict(_falsified(seen, client, case))
    return replace(
        row,
        controls=tuple(f"{what} ({by})" if by else what for what, by in noticed.items()),
        unnoticed=tuple(what for what, by in noticed.items() if not by),
    )


def _falsified(seen: Seen, client: Engine, case: Case) -> Iterator[tuple[str, str]]:
    """The negative controls, each with what told it, '' when nothing did.

    One part of the target after the other, each put right again: a part in which nothing changed
    was no control. Then whole models; the draft first: without a target nothing is accepted.
    """
    for part in parts(seen):
        client.tell(do="rpc", method=shift, args=(part, 1))
        after = look(client, case)
        client.tell(do="rpc", method=shift, args=(part, -1))
        if after.held != seen.held or after.said != seen.said or sealed_in(part, seen):
            yield part, told_by(part, seen, after)
    for role in sorted(seen.held[0]):
        client.tell(do="rpc", method=erase, args=(role,))
        yield f"the whole {role}", seen.oracle if notices(role, seen, look(client, case)) else ""


def look(engine: Engine, case: Case) -> Seen:
    """All that an engine shows."""
    held = engine.tell(do="inventory")
    if not case.tokens:
        return Seen(held)
    return Seen(held, engine.tell(do="ask", prompts=PROMPTS, tokens=case.tokens))


def without_weights(folder: Path, target: Path) -> Path:
    """A copy of a model folder as a client has it: everything but the weights.

    The weights are the files of the top folder that end as weights do. Files below it stay: those
    of a Sentence-Transformers head, for example, are no part of what a server sends.
    """
    shutil.copytree(
        folder, target, ignore=_weights_of(folder), copy_function=_copy, dirs_exist_ok=True
    )
    return target


def _copy(source: str, target: str) -> None:
    """What is large is not copied: some folders have a second set of weights below them."""
    if source.endswith(WEIGHTS):
        Path(target).symlink_to(Path(source).resolve())
    else:
        shutil.copy(source, target)


def _weights_of(folder: Path) -> Callable[[str, list[str]], list[str]]:
    def ignored(at: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(at) == folder and name.endswith(WEIGHTS)]

    return ignored


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
        raise EngineError("an engine offered or received nothing, and its log has no reason", text)
    return reasons[-1]
