"""The page of what ran with vllm-ascend: one table for each torch, the newest of each."""

from tests.ascend.table import HEAD, merged

OLD = "## torch 2.10.0, torch_npu 2.10.0.post4\n\n| bf16 | failed |\n"
OTHER = "## torch 2.13.0+cpu, torch_npu 2.13.0\n\n| bf16 | passed |\n"


def test_a_table_is_added_beside_that_of_another_torch() -> None:
    assert merged("", OLD) == f"{HEAD}{OLD}"
    assert merged(merged("", OTHER), OLD) == f"{HEAD}{OLD}\n{OTHER}"


def test_a_table_replaces_that_of_the_same_torch() -> None:
    page = merged(merged("an older head\n\n", OTHER), OLD)
    new = OLD.replace("failed", "passed")
    assert merged(page, new) == f"{HEAD}{new}\n{OTHER}"
