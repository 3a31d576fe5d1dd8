"""The comparison itself: what it notices, which part of it counts, and what the row says."""

from dataclasses import replace
from typing import Any

import pytest

from netloader.vllm_plugin.inspect.parity.rows import (
    Held,
    Row,
    Said,
    Seen,
    compare,
    legend,
    notices,
    parts,
    table,
    told_by,
)

OPEN = Held({"a.weight": "d1", "b": "d2"}, {"scale": 1.0, "flag": True}, {}, {})
COPIED = replace(OPEN, opaque={"a.cpu_linear(handler)": "Handle"})
SEALED = replace(COPIED, sealed=COPIED.opaque)


SAID = Said(("generate (tokens)",), [[1, 2]], [[-0.5, -0.25]])
POOLED = Said(("embed (tokens)",), outputs={"embed of prompt 0": "float32 [2] d1: 0.5, 0.25, ..."})


def seen(held: Held = OPEN, said: Said = SAID, **changes: Any) -> Seen:
    return Seen([{"target": held}], replace(said, **changes))


def mute(held: Held) -> Seen:
    return Seen([{"target": held}])


DRAFTED = Seen([{"target": SEALED, "draft": SEALED}], replace(SAID, drafts=(4, 3)))


def drafted(**changes: Any) -> Seen:
    return replace(DRAFTED, said=replace(DRAFTED.said, **changes))


@pytest.mark.parametrize(
    ("what", "oracle"),
    [
        (seen(), "tensors"),
        (seen(COPIED), "tokens"),
        (seen(SEALED), "tokens"),
        (DRAFTED, "tokens+acceptance"),
        (seen(OPEN, POOLED), "tensors"),
        (seen(SEALED, POOLED), "outputs"),
        (mute(OPEN), "digests"),
        (mute(COPIED), "digests"),
        (mute(SEALED), "none"),
    ],
)
def test_what_is_hidden_decides_which_comparison_counts(what: Seen, oracle: str) -> None:
    assert what.oracle == oracle


def row(**found: Any) -> Row:
    return replace(Row("m", "bfloat16", "none", "-", controls=("the whole target",)), **found)


def test_two_that_are_alike_are_identical() -> None:
    found = compare(seen(), seen())
    assert found["differences"] == ()
    assert row(**found).verdict == "identical"


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (seen(tokens=[[1, 3]]), "tokens: [[1, 2]] against [[1, 3]]"),
        (seen(logprobs=[[-0.5, -0.2500001]]), "log-probabilities"),
        (seen(replace(OPEN, tensors={**OPEN.tensors, "b": "d3"})), "b: 'd2' against 'd3'"),
        (seen(replace(OPEN, tensors={"a.weight": "d1"})), "b: 'd2' against missing"),
        (seen(replace(OPEN, scalars={**OPEN.scalars, "flag": 1})), "flag: True against 1"),
        (seen(replace(OPEN, scalars={**OPEN.scalars, "new": 0})), "new: missing against 0"),
        (seen(SEALED), "a.cpu_linear(handler): missing against 'Handle'"),
        (replace(seen(), held=[]), "ranks: 1 against 0"),
        (replace(seen(), held=[{"target": OPEN, "draft": OPEN}]), "draft: missing against ''"),
    ],
)
def test_one_difference_is_wrong_and_is_shown(theirs: Seen, said: str) -> None:
    found = compare(seen(), theirs)
    assert any(said in line for line in found["differences"])
    assert row(**found).verdict == "WRONG"


def test_fewer_accepted_drafts_are_wrong_even_when_the_tokens_are_right() -> None:
    found = compare(DRAFTED, drafted(drafts=(4, 0)))
    assert found["answers"]
    assert row(**found).verdict == "WRONG"


def test_a_number_that_is_none_equals_itself() -> None:
    held = replace(OPEN, scalars={"scale": float("nan")})
    assert compare(seen(held), seen(replace(held, scalars={"scale": float("nan")})))["tensors"]


def test_many_differences_are_cut_short() -> None:
    many = replace(OPEN, tensors={f"t{i}": "x" for i in range(100)})
    found = compare(seen(many), seen(replace(many, tensors=dict.fromkeys(many.tensors, "y"))))
    assert found["differences"][-1].endswith("and 80 more")


OTHER = {"embed of prompt 0": "float32 [2] d2: 0, 0, ..."}
ZEROED = dict.fromkeys(OPEN.tensors, "zero")


@pytest.mark.parametrize(
    ("role", "before", "after", "noticed"),
    [
        ("target", mute(OPEN), mute(replace(OPEN, tensors=ZEROED)), True),
        ("target", seen(), seen(replace(OPEN, tensors=ZEROED), tokens=[[0, 0]]), True),
        ("target", seen(), seen(replace(OPEN, tensors=ZEROED)), False),
        ("target", seen(), seen(tokens=[[0, 0]]), False),
        ("target", seen(), seen(), False),
        ("target", seen(SEALED), seen(replace(SEALED, tensors=ZEROED)), False),
        ("target", seen(SEALED), seen(SEALED, tokens=[[0, 0]]), True),
        ("target", seen(SEALED), seen(SEALED, logprobs=[[-1.0, -1.0]]), True),
        ("target", seen(SEALED, POOLED), seen(SEALED, POOLED, outputs=OTHER), True),
        ("target", seen(SEALED, POOLED), seen(SEALED, POOLED), False),
        ("draft", DRAFTED, drafted(drafts=(8, 0)), True),
        ("draft", DRAFTED, drafted(tokens=[[0, 0]]), False),
        ("target", mute(SEALED), mute(SEALED), False),
    ],
)
def test_only_what_counts_notices_erased_weights(
    role: str, before: Seen, after: Seen, noticed: bool
) -> None:
    assert notices(role, before, after) is noticed


ELSEWHERE = replace(SEALED, sealed={"head.linear": "Handle"})


@pytest.mark.parametrize(
    ("before", "after", "by"),
    [
        (seen(), seen(replace(OPEN, tensors=ZEROED)), "digests"),
        (seen(), seen(replace(OPEN, tensors=ZEROED), tokens=[[0, 0]]), "answers"),
        (seen(), seen(), ""),
        (seen(SEALED), seen(replace(SEALED, tensors=ZEROED)), ""),
        (seen(SEALED), seen(SEALED, tokens=[[0, 0]]), "answers"),
        (seen(ELSEWHERE), seen(replace(ELSEWHERE, tensors=ZEROED)), "digests"),
    ],
)
def test_a_part_that_is_sealed_must_be_told_by_the_answers(
    before: Seen, after: Seen, by: str
) -> None:
    assert told_by("a", before, after) == by


def test_the_parts_of_a_model_are_what_its_paths_begin_with() -> None:
    paths = (
        "model.encoder.conv",
        "model.decoder.norm",
        "pooler.heads[embed].w",
        "t[0]",
        "pooler.b",
    )
    held = replace(OPEN, tensors=dict.fromkeys(paths, "d"))
    assert parts(seen(held)) == ("model.encoder", "model.decoder", "pooler", "t")


def test_a_comparison_that_notices_nothing_is_blind() -> None:
    found = row(**compare(seen(), seen()))
    assert found.verdict == "identical"
    assert replace(found, unnoticed=("lm_head",)).verdict == "BLIND"
    assert replace(found, controls=()).verdict == "BLIND"


def test_the_legend_says_what_was_compared_and_what_covers_the_rest() -> None:
    found = row(**compare(seen(SEALED, POOLED), seen(SEALED, POOLED)))
    said = " ".join(legend(replace(found, unnoticed=("pooler",))))
    assert "2 tensors by digest" in said
    assert "2 scalars by value, 1 opaque objects by type" in said
    assert "covered by the answers (embed (tokens))" in said
    assert "NOT noticed: pooler" in said
    assert "covered by nothing" in " ".join(legend(row(**compare(mute(SEALED), mute(SEALED)))))
    assert list(legend(replace(found, controls=()))) == []


def test_the_table_has_a_line_for_each_row() -> None:
    lines = table([row(nbytes=1234567), row(refusal="no | thanks")]).splitlines()
    assert len(lines) == 4
    assert "1 234 567" in lines[2]
    assert "refused: no / thanks" in lines[3]
    assert len({line.count("|") for line in lines}) == 1
