"""Compare what two engines show: one row of the table. Pure functions; no engine is needed here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_LINES = 20
"""Differences shown of each kind: enough to see the pattern."""

READ = ("tensors", "digests")
"""Oracles that rest on digests."""

Ranks = Sequence[Mapping[str, "Held"]]
"""For each rank, by role (`target`, `draft`), what that model holds."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one model of one rank holds, by path (see `inventory`): digests, scalars, types.

    `sealed` is what is opaque and has no readable twin.
    """

    tensors: Mapping[str, str]
    scalars: Mapping[str, bool | int | float | str]
    opaque: Mapping[str, str]
    sealed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Said:
    """What a model answered; empty when it was asked nothing.

    `asked` names the questions. A model that generates has tokens and log-probabilities, one list
    for each prompt, and `drafts`: how many tokens a draft model proposed, and how many were
    accepted. `outputs` has what is no token: embeddings, class probabilities, scores, each by its
    question, as dtype, shape, digest of all bytes, and the first numbers.
    """

    asked: tuple[str, ...] = ()
    tokens: Sequence[Sequence[int]] = ()
    logprobs: Sequence[Sequence[float]] = ()
    drafts: tuple[int, int] = (0, 0)
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """All that an engine shows of itself: what its models hold, and what they answered."""

    held: Ranks
    said: Said = Said()

    @property
    def oracle(self) -> str:
        """Which comparisons count: what can be reached proves nothing about what cannot."""
        held = [held for rank in self.held for held in rank.values()]
        if not (self.said.tokens or self.said.outputs):
            return "none" if any(h.sealed for h in held) else "digests"
        if not any(h.opaque for h in held):
            return "tensors"
        if not self.said.tokens:
            return "outputs"
        return "tokens+acceptance" if self.said.drafts[0] else "tokens"

    @property
    def counts(self) -> "Counts":
        """How much of the engine's state is compared, over all ranks and models."""
        held = [held for rank in self.held for held in rank.values()]
        parts = ("tensors", "scalars", "opaque", "sealed")
        return Counts(*(sum(len(getattr(h, part)) for h in held) for part in parts))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many objects of an engine's state are compared, and by what.

    Tensors by digest, scalars by value, opaque objects by type only. Of the opaque ones `sealed`
    have no readable twin, so only the answers can tell what is in them.
    """

    tensors: int = 0
    scalars: int = 0
    opaque: int = 0
    sealed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; None stands for what was not compared."""

    model: str
    dtype: str
    quantization: str
    partition: str
    layout: str = "-"
    nbytes: int = 0
    cached: int = 0
    asked: tuple[str, ...] = ()
    counts: Counts = Counts()
    oracle: str = "-"
    answers: bool | None = None
    """Tokens, log-probabilities, embeddings, classes, scores: all identical."""
    tensors: bool | None = None
    """Every tensor, scalar and type that can be reached is identical."""
    drafts: bool | None = None
    """As many draft tokens were proposed and accepted."""
    controls: tuple[str, ...] = ()
    """Which weights were falsified to see whether that is noticed, and by what: it must be."""
    unnoticed: tuple[str, ...] = ()
    """Those of `controls` that the oracle did not notice."""
    refusal: str = ""
    differences: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`identical`, `refused`, `BLIND` or `WRONG`; only the first two are good."""
        if self.refusal:
            return "refused"
        if False in (self.answers, self.tensors, self.drafts):
            return "WRONG"
        return "identical" if self.controls and not self.unnoticed else "BLIND"


def compare(mine: Seen, theirs: Seen) -> dict[str, Any]:
    """The fields of a `Row` that say what is identical, and where it is not."""
    here, there = mine.said, theirs.said
    said = (
        *_sequence("questions", here.asked, there.asked),
        *_sequence("tokens", here.tokens, there.tokens),
        *_sequence("log-probabilities", here.logprobs, there.logprobs),
        *_mapping("answer", here.outputs, there.outputs),
    )
    held = tuple(_holdings(mine.held, theirs.held))
    drafts = tuple(_sequence("drafts proposed, accepted", here.drafts, there.drafts))
    return {
        "asked": here.asked,
        "counts": mine.counts,
        "oracle": mine.oracle,
        "answers": not said if here.asked else None,
        "tensors": not held,
        "drafts": not drafts if here.drafts[0] else None,
        "differences": said + drafts + held,
    }


def notices(role: str, before: Seen, after: Seen) -> bool:
    """Whether what counts tells an engine from the same one with `role`'s weights erased.

    The answers must tell as well, if there are any: else the question was none.
    """
    found = compare(before, after)
    says = found["drafts" if role == "draft" else "answers"] is False
    counting = [says] if before.said.asked else []
    if before.oracle in READ:
        counting.append(found["tensors"] is False)
    return bool(counting) and all(counting)


def told_by(part: str, before: Seen, after: Seen) -> str:
    """What tells an engine from the same one with one part falsified: `answers`, `digests`, ''.

    Not every tensor of a checkpoint has a say in every answer, so digests will do for a part that
    can be read to the last byte. One that cannot must be told by the answers.
    """
    found = compare(before, after)
    if found["answers"] is False:
        return "answers"
    return "digests" if found["tensors"] is False and not sealed_in(part, before) else ""


def sealed_in(part: str, seen: Seen) -> bool:
    """Whether a part of the target holds what only the answers can tell."""
    return any(part == part_of(path) for rank in seen.held for path in rank["target"].sealed)


def parts(seen: Seen) -> tuple[str, ...]:
    """The parts of a target that hold tensors: the first name in the path of each, in order."""
    paths = (path for rank in seen.held for path in rank["target"].tensors)
    return tuple(dict.fromkeys(map(part_of, paths)))


def part_of(path: str) -> str:
    """`lm_head` of `lm_head.weight`; an encoder and a decoder below `model` are two parts."""
    found = re.match(r"model\.(?:encoder|decoder)\b|[^.\[(]*", path)
    return found[0] if found else path


def _sequence(what: str, mine: Sequence[Any], theirs: Sequence[Any]) -> Iterator[str]:
    if repr(mine) != repr(theirs):
        yield f"{what}: {mine} against {theirs}"


def _holdings(mine: Ranks, theirs: Ranks) -> Iterator[str]:
    if len(mine) != len(theirs):
        yield f"ranks: {len(mine)} against {len(theirs)}"
    for rank, (here, there) in enumerate(zip(mine, theirs, strict=False)):
        yield from _mapping(f"rank {rank}", dict.fromkeys(here, ""), dict.fromkeys(there, ""))
        for role in here.keys() & there.keys():
            for part in ("tensors", "scalars", "opaque"):
                at = f"rank {rank} {role} {part}"
                yield from _mapping(at, getattr(here[role], part), getattr(there[role], part))


def _mapping(at: str, mine: Mapping[str, object], theirs: Mapping[str, object]) -> Iterator[str]:
    paths = dict.fromkeys((*mine, *theirs))
    lines = [
        f"{at}: {path}: {_shown(mine, path)} against {_shown(theirs, path)}"
        for path in paths
        if repr(mine.get(path)) != repr(theirs.get(path))  # nan is nan, and True is not 1
    ]
    yield from lines[:MOST_LINES]
    if len(lines) > MOST_LINES:
        yield f"{at}: and {len(lines) - MOST_LINES} more"


def _shown(of: Mapping[str, object], path: str) -> str:
    return repr(of[path]) if path in of else "missing"


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    head = (
        "model", "dtype", "quantization", "partition", "layout", "bytes", "cache bytes",
        "asked", "state", "oracle", "answers", "tensors", "drafts", "verdict",
    )  # fmt: skip
    lines = [head, ("---",) * len(head), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    words = {True: "same", False: "DIFFER", None: "-"}
    verdict = f"refused: {row.refusal}" if row.refusal else row.verdict
    counts = row.counts
    state = f"{counts.tensors} + {counts.scalars} + {counts.opaque} ({counts.sealed})"
    return (
        row.model,
        row.dtype,
        row.quantization,
        row.partition,
        row.layout,
        f"{row.nbytes:,}".replace(",", " "),
        f"{row.cached:,}".replace(",", " "),
        ", ".join(row.asked) or "-",
        state if row.controls else "-",
        row.oracle,
        words[row.answers],
        words[row.tensors],
        words[row.drafts],
        verdict.replace("|", "/"),
    )


def legend(row: Row) -> Iterator[str]:
    """What was compared for a row, and how; nothing for one that was refused."""
    if not row.controls:
        return
    counts = row.counts
    yield (
        f"Compared: {counts.tensors} tensors by digest (BLAKE3 of dtype, shape, stride and bytes), "
        f"{counts.scalars} scalars by value, {counts.opaque} opaque objects by type."
    )
    if counts.sealed:
        covered = f"the answers ({', '.join(row.asked)})" if row.asked else "nothing"
        yield (
            f"{counts.sealed} of the opaque objects have no readable twin: "
            f"what is in them is covered by {covered}."
        )
    if row.asked:
        yield f"Asked: {', '.join(row.asked)}; answers must agree to the last bit."
    else:
        yield "Asked: nothing."
    yield f"Falsified in turn, to see whether it is noticed: {', '.join(row.controls)}."
    if row.unnoticed:
        yield f"NOT noticed: {', '.join(row.unnoticed)}. The row proves nothing about them."
