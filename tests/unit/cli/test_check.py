"""`check` against a server with the identity that an engine of the same folder would have."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from netloader.cli import check
from netloader.cli.sources import asking
from tests.support.zoo.checkpoint import write
from tests.support.zoo.dense import llama, llama_config
from tests.unit.cli.helpers import inside
from tests.unit.io.helpers import closed_port, sealed, serving

if TYPE_CHECKING:
    from netloader.vllm_plugin.identity.local_model import LocalModel

ENGINE = {"skip_tokenizer_init": True, "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = llama().tensors(1, torch.bfloat16)
    return write(tmp_path_factory.mktemp("model") / "llama", llama_config(), tensors)


def test_a_client_that_fits_is_told_so_and_one_that_does_not_what_to_do(folder: Path) -> None:
    local: LocalModel = check.read(folder, ENGINE)
    with serving({"w": torch.ones(4)}, local.identity()) as server:
        where, options = str(sealed(server).endpoint), asking(60.0, None, None)
        fits = check.run(where, folder, ENGINE, options)
        other = check.run(where, folder, {**ENGINE, "dtype": "float16"}, options)

    assert (fits.code, fits.data["accepted"]) == (0, True)
    assert "built model" in str(fits.data["uncompared"])
    assert (other.code, other.data["accepted"]) == (1, False)
    rows = {row["field"]: row for row in other.data["differences"]}  # type: ignore[attr-defined]
    assert (rows["dtype"]["mine"], rows["dtype"]["theirs"]) == ("float16", "bfloat16")
    assert rows["dtype"]["remedy"]


def test_what_cannot_be_checked_says_why(folder: Path, tmp_path: Path) -> None:
    nobody = inside("check", str(closed_port()), "--model", str(folder))
    assert nobody.code == 3
    gone = inside("check", str(closed_port()), "--model", str(tmp_path / "gone"))
    assert (gone.code, "gone is no folder" in gone.err) == (2, True), "before anybody is asked"
    with serving({"w": torch.ones(4)}) as server:
        ran = inside("check", str(sealed(server).endpoint), "--model", str(tmp_path))
    assert ran.code == 5
    assert "vLLM cannot read" in ran.err
