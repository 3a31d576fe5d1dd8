"""Every model of the zoo, from disk and through netloader: identical or refused, never wrong."""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.vllm_plugin.inspect.parity.rows import Row
from netloader.vllm_plugin.inspect.parity.run import examine
from tests.e2e.engines import ENVIRONMENT, MEDIA, Engine, ForkServer
from tests.support.zoo import dense
from tests.support.zoo.checkpoint import write
from tests.support.zoo.rows import PLANS, Plan

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_the_client_is_its_server_or_refuses(
    plan: Plan, fork_server: ForkServer, tmp_path: Path, table_rows: list[Row]
) -> None:
    missing = [name for name in plan.needs if not (MEDIA / name).is_dir()]
    if missing:
        pytest.skip(f"{missing} of requirements/media.txt is not in {MEDIA}")
    row = examine(plan.case(tmp_path), fork_server.start, tmp_path)
    table_rows.append(row)
    assert row.verdict == plan.verdict, (row.refusal, row.unnoticed, *row.differences)
    if row.refusal:
        assert plan.refusal in row.refusal


def test_the_answers_tell_a_head_that_hangs_outside_the_tree(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    (plan,) = (plan for plan in PLANS if plan.name == "qwen3 embedding, Dense")
    row = examine(plan.case(tmp_path), fork_server.start, tmp_path)
    assert "pooler (answers)" in row.controls


def test_the_comparison_notices_other_weights(fork_server: ForkServer, tmp_path: Path) -> None:
    """Engine B is given another checkpoint from disk: what a broken loader would come to."""
    made = dense.llama()
    other = write(tmp_path / "other", made.config, made.tensors(2, torch.bfloat16))

    def swap(
        model: Path, extra: Mapping[str, Any], options: Mapping[str, Any]
    ) -> AbstractContextManager[Engine]:
        fills = "SOURCE" in extra
        return fork_server.start(other if fills else model, {} if fills else extra, options)

    row = examine(PLANS[0].case(tmp_path), swap, tmp_path)
    assert (row.verdict, row.answers, row.tensors) == ("WRONG", False, False)


def test_the_command(tmp_path: Path) -> None:
    case = PLANS[0].case(tmp_path)
    command = [sys.executable, "-m", "netloader.vllm_plugin.inspect.parity", str(case.folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| same | same | - | identical |" in done.stdout
    assert "Asked: generate (tokens); answers must agree to the last bit." in done.stdout


def test_the_command_says_in_a_sentence_why_it_cannot_compare(tmp_path: Path) -> None:
    config = dense.llama_config(architectures=["OddForCausalLM"])
    folder = write(tmp_path / "model", config, {})
    command = [sys.executable, "-m", "netloader.vllm_plugin.inspect.parity", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, timeout=240
    )
    assert done.returncode == 1
    assert "['OddForCausalLM'] are not supported" in done.stderr
    assert "Traceback" not in done.stderr
