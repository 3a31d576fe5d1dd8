"""The docs say what the code says: generated parts are fresh, examples run, links lead on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_parts_are_fresh() -> None:
    script = ROOT / "docs" / "generate.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_embedding_examples_run() -> None:
    page = (ROOT / "docs" / "embedding.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = [
        line
        for line in examples[0].splitlines()
        if line.strip() and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 30
    code = "\n".join(examples)  # in the order of the page: later ones use what earlier ones define
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "True verified" in done.stdout
    assert "unreachable" in done.stdout


def test_the_example_of_the_simulated_world_runs() -> None:
    example = re.search(
        r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL
    )
    assert example is not None
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example[1]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+\.md)[^)]*\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
