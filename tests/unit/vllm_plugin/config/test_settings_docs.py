"""What the documentation says of the extra config, and what reading it needs."""

import json
import subprocess
import sys

from netloader.vllm_plugin.config.settings import (
    FIELDS,
    Settings,
    render_fields,
)


def test_every_field_is_in_the_table_of_the_docs_with_its_default() -> None:
    lines = render_fields().splitlines()

    assert lines[:2] == ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    assert len(lines) == len(FIELDS) + 2
    assert all(line.count(" | ") == 3 for line in lines)
    assert (
        "| `MAX_CLIENTS` | integer | `2` | clients served at once; "
        "others are told when to come back |"
    ) in lines
    assert any(line.startswith("| `MIN_RATE_MIB_S` | number | `50.0` | ") for line in lines)
    assert any(line.startswith("| `MODEL` | string |  | ") for line in lines)


def test_the_names_of_the_guide_are_all_there() -> None:
    guide = "SOURCE MODEL LISTEN_PORT INT8_CACHE INT8_CACHE_NAME OUTPUT_PREFIX CONFIG_FILE"

    assert [row.name for row in FIELDS][:7] == guide.split()


def test_the_docs_example_is_accepted() -> None:
    row = next(row for row in FIELDS if row.name == "SOURCE")
    example = row.meaning.split("`")[1].replace(", ...", "")

    assert Settings.parse({"SOURCE": json.loads(example)}).sources


def test_settings_need_neither_vllm_nor_torch() -> None:
    code = (
        "import sys, types; sys.modules['netloader.vllm_plugin'] = package = types.ModuleType('p');"
        "import netloader; package.__path__ = [netloader.__path__[0] + '/vllm_plugin'];"
        "before = set(sys.modules); import netloader.vllm_plugin.config.settings;"
        "sys.exit(bool({'vllm', 'torch'} & (set(sys.modules) - before)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
