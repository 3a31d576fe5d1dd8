"""Identity: which field differs, with both values and what to do."""

from netloader.fsm.identity import ABSENT, MAX_DIFFERENCES, Difference, Identity

REMEDY = "start both sides with the same setting"


def test_equal_identities_have_no_difference() -> None:
    identity = Identity({"model": "llama", "dtype": "bfloat16"}, {"checkpoint": "rev-1"})

    assert identity.differences(identity) == ()
    assert identity.disagreements(identity) == ()
    assert Identity().differences(Identity()) == ()


def test_every_differing_field_is_named_with_both_values_in_my_order() -> None:
    mine = Identity({"tp_size": "1", "other": "bfloat16", "only_mine": "x", "rank": "0"})
    theirs = Identity({"only_theirs": "y", "rank": "0", "other": "float16", "tp_size": "2"})

    assert mine.differences(theirs) == (
        Difference("tp_size", "1", "2", REMEDY),
        Difference("other", "bfloat16", "float16", REMEDY),
        Difference("only_mine", "x", ABSENT, REMEDY),
        Difference("only_theirs", ABSENT, "y", REMEDY),
    )


def test_a_soft_field_counts_only_when_both_sides_have_it() -> None:
    mine = Identity({"model": "llama"}, {"checkpoint": "rev-1", "builder": "me"})

    assert mine.differences(Identity({"model": "llama"}, {"checkpoint": "rev-1"})) == ()
    assert mine.differences(Identity({"model": "llama"}, {"host": "b"})) == ()
    (found,) = mine.differences(Identity({"model": "llama"}, {"checkpoint": "rev-2"}))
    assert (found.field, found.mine, found.theirs) == ("checkpoint", "rev-1", "rev-2")
    assert "revision" in found.remedy


def test_a_field_that_one_side_lacks_is_no_disagreement() -> None:
    little = Identity({"model": "llama", "unknown_there": "x"}, {"checkpoint": "rev-2"})
    much = Identity({"model": "mamba", "tp_size": "1", "checkpoint": "rev-1"})

    found = {d.field: (d.mine, d.theirs) for d in little.disagreements(much)}

    assert found == {"model": ("llama", "mamba"), "checkpoint": ("rev-2", "rev-1")}
    assert Identity({"model": "llama"}).disagreements(Identity({"tp_size": "1"})) == ()


def test_the_other_side_sees_the_same_difference_the_other_way_round() -> None:
    mine, theirs = Identity({"model": "a", "x": "1"}), Identity({"model": "b", "y": "2"})

    seen = {d.swapped() for d in theirs.differences(mine)}

    assert set(mine.differences(theirs)) == seen
    assert all(d.swapped().swapped() == d for d in seen)


def test_a_difference_reads_as_a_sentence() -> None:
    (found,) = Identity({"model": "a"}).differences(Identity({"model": "b"}))

    assert str(found).startswith(
        "model: mine is 'a', theirs is 'b' (start both with the same MODEL"
    )
    assert str(Difference("dtype", "a", "b")) == "dtype: mine is 'a', theirs is 'b'"


def test_a_peer_that_invents_fields_does_not_make_the_refusal_grow() -> None:
    mine = Identity({"model": "llama"}, {"checkpoint": "a"})
    theirs = Identity({f"field {i}": "x" for i in range(100_000)}, {"checkpoint": "b"})

    differences = mine.differences(theirs)
    assert len(differences) == MAX_DIFFERENCES
    assert differences[0].field == "model"
    known = Identity({f"field {i}": "y" for i in range(100)})
    assert len(known.disagreements(theirs)) == MAX_DIFFERENCES
