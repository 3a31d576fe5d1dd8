"""What two engines show, compared: one row of the table. Law: pure, no engine is needed here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_LINES = 20
"""Differences shown of each kind: enough to see the pattern."""

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
class Seen:
    """All that an engine shows of itself.

    `tokens` and `logprobs` have one list a prompt and are empty when nothing could be generated;
    `drafts` is how many tokens a draft model proposed, and how many of them were accepted.
    """

    held: Ranks
    tokens: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]
    drafts: tuple[int, int]

    @property
    def oracle(self) -> str:
        """Which comparisons count: what can be reached proves nothing about what cannot."""
        held = [held for rank in self.held for held in rank.values()]
        if not self.tokens:
            return "none" if any(h.sealed for h in held) else "digests"
        if not any(h.opaque for h in held):
            return "tensors"
        return "tokens+acceptance" if self.drafts[0] else "tokens"


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
    oracle: str = "-"
    tokens: bool | None = None
    """Tokens and log-probabilities are identical."""
    tensors: bool | None = None
    """Every tensor, scalar and type that can be reached is identical."""
    drafts: bool | None = None
    """As many draft tokens were proposed and accepted."""
    noticed: bool | None = None
    """The oracle noticed that the weights were set to zero."""
    refusal: str = ""
    differences: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`identical`, `refused`, `BLIND` or `WRONG`; only the first two are good."""
        if self.refusal:
            return "refused"
        if False in (self.tokens, self.tensors, self.drafts):
            return "WRONG"
        return "identical" if self.noticed else "BLIND"


def compare(mine: Seen, theirs: Seen) -> dict[str, Any]:
    """The fields of a `Row` that say what is identical, and where it is not."""
    said = (
        *_sequence("tokens", mine.tokens, theirs.tokens),
        *_sequence("log-probabilities", mine.logprobs, theirs.logprobs),
    )
    held = tuple(_holdings(mine.held, theirs.held))
    drafts = tuple(_sequence("drafts proposed, accepted", mine.drafts, theirs.drafts))
    return {
        "oracle": mine.oracle,
        "tokens": not said if mine.tokens else None,
        "tensors": not held,
        "drafts": not drafts if mine.drafts[0] else None,
        "differences": said + drafts + held,
    }


def notices(role: str, before: Seen, after: Seen) -> bool:
    """Whether what counts tells an engine from the same one with `role`'s weights erased."""
    found = compare(before, after)
    if before.oracle in ("tensors", "digests"):
        return found["tensors"] is False
    return found["drafts" if role == "draft" else "tokens"] is False


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
        "oracle", "tokens", "tensors", "drafts", "verdict",
    )  # fmt: skip
    lines = [head, ("---",) * len(head), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    words = {True: "same", False: "DIFFER", None: "-"}
    verdict = f"refused: {row.refusal}" if row.refusal else row.verdict
    return (
        row.model,
        row.dtype,
        row.quantization,
        row.partition,
        row.layout,
        f"{row.nbytes:,}".replace(",", " "),
        f"{row.cached:,}".replace(",", " "),
        row.oracle,
        words[row.tokens],
        words[row.tensors],
        words[row.drafts],
        verdict.replace("|", "/"),
    )
