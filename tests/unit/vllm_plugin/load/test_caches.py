"""A rank offers what it knows beside its weights, and takes over what a source knows."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from netloader.config import Endpoint
from netloader.files.hints import KV_SIZE, KvSize, take_hints
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, Progress
from netloader.fsm.messages import Description
from netloader.io.describe import ask_status
from netloader.io.options import ClientOptions
from netloader.log import capture
from netloader.secure.tokens import TokenFile
from netloader.vllm_plugin.config.settings import CachePolicy, LayoutChoice
from netloader.vllm_plugin.identity.identity import DRAFT
from netloader.vllm_plugin.identity.reading import read_config
from netloader.vllm_plugin.load.caches import Caches, kept_at_load
from netloader.vllm_plugin.load.loaded import taken
from netloader.vllm_plugin.load.offer import offer
from netloader.vllm_plugin.patches import cache_root
from netloader.vllm_plugin.serve.known import Known
from netloader.vllm_plugin.serve.kv_cache import KvCache
from netloader.vllm_plugin.serve.worker import Worker, this_worker
from tests.unit.files.test_placing import files
from tests.unit.io.helpers import asking, eventually
from tests.unit.vllm_plugin.helpers import Lines, plan, post_process, settings, where
from tests.unit.vllm_plugin.patches.test_cache_root import SECRETS, configured, with_secrets

pytestmark = pytest.mark.usefixtures("worker_process")

MADE = Identity({"role": "caches", "model": "tiny", "vllm": "1"})
SIZE = KvSize(20 << 30, 70 << 30, 30 << 30, {"vllm": "1"})
INSPECTION = "modelinfos/vllm-llama-Llama.json"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("sixteen characters and more")
    return path


def known(folder: Path, **changes: Any) -> Known:
    """What a rank knows, with the files that it knows it from."""
    (folder / "compiled" / "ab").mkdir(parents=True)
    (folder / "compiled" / "ab" / "x.so").write_bytes(b"code")
    (folder / "info.json").write_bytes(b"{}")
    plain = Known(
        "tiny",
        MADE,
        {"inductor": folder / "compiled"},
        {INSPECTION: folder / "info.json"},
        lambda name: name.startswith("rank_"),
    )
    return replace(plain, **changes)


def offering(what: Known | None, token: Path, measured: KvSize | None = SIZE) -> nn.Module:
    """Serve a tiny model of a warm engine; what keeps it alive."""
    module, options = nn.Linear(4, 4), settings(token=TokenFile(token))
    loaded = taken(plan(), module, options.keeping_at_load, Progress())
    post_process(module)
    this_worker().kv_cache.measured = measured
    this_worker().known = what
    assert offer(module, plan(), loaded, options)
    return module


def options(token: Path) -> ClientOptions:
    return asking(token=TokenFile(token))


def offers(role: str, token: Path) -> bool:
    return isinstance(
        ask_status(where(), {"role": role}, Manifest(()), options(token)), Description
    )


class Mine(Caches):
    """A rank that looks for compiled code in one folder."""

    def _known(self, model: nn.Module) -> Known:
        return Known(
            self.model, self.fingerprint, {"inductor": cache_root.root() / "own"}, {}, bool
        )


def mine(token: Path, fingerprint: Identity = MADE) -> Mine:
    nothing: Any = None
    return Mine("tiny", fingerprint, {"vllm": "1"}, nothing, options(token))


def details(lines: Lines, event: str) -> list[str]:
    return [line["netloader.detail"] for line in lines if line["event"] == event]


def test_what_a_warm_rank_knows_is_taken_over(
    tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "root"))
    module, kv_cache = offering(known(tmp_path / "theirs"), token), KvCache()
    assert eventually(lambda: offers("caches", token))
    with capture() as lines:
        mine(token).take_hints([where()], kv_cache)
        mine(token).take_compiled([where()], module)
    assert kv_cache.hint == SIZE
    assert kv_cache.conditions == {"vllm": "1"}
    assert files(tmp_path / "root") == {INSPECTION: b"{}", "own/ab/x.so": b"code"}
    assert details(lines, "netloader.caches.taken") == [
        "hints, 1 files that were not here",
        "compiled code, 1 files that were not here",
    ]


def test_what_was_made_elsewhere_is_named_and_the_load_goes_on(
    tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "root"))
    module = offering(known(tmp_path / "theirs"), token)
    assert eventually(lambda: offers("caches", token))
    other = Identity({**MADE.hard, "vllm": "2"})
    with capture() as lines:
        mine(token, other).take_compiled([where()], module)
    (why,) = details(lines, "netloader.caches.refused")
    assert "vllm: mine is '2', theirs is '1'" in why
    assert not (tmp_path / "root").exists()


def test_a_source_that_is_gone_costs_a_line_of_the_log(token: Path) -> None:
    with capture() as lines:
        mine(token).take_hints([Endpoint("127.0.0.1", 1)], KvCache())
        mine(token).take_compiled([Endpoint("127.0.0.1", 1)], nn.Linear(1, 1))
    assert len(details(lines, "netloader.caches.refused")) == 2


def test_without_sources_nothing_is_asked(token: Path) -> None:
    with capture() as lines:
        mine(token).take_hints([], KvCache())
        mine(token).take_compiled([], nn.Linear(1, 1))
    assert lines == []


def test_only_what_there_is_is_offered(tmp_path: Path, token: Path) -> None:
    nothing = known(tmp_path / "theirs", folders={}, inspections={})
    module = offering(nothing, token)
    assert eventually(lambda: offers("hints", token))
    assert not offers("caches", token)
    assert [*take_hints([where()], "tiny", options(token))] == [KV_SIZE]
    del module


def test_an_engine_that_knows_nothing_offers_nothing(tmp_path: Path, token: Path) -> None:
    empty = known(tmp_path / "theirs", inspections={}, folders={"inductor": tmp_path / "missing"})
    with capture() as lines:
        module = offering(empty, token, measured=None)
        assert eventually(lambda: details(lines, "netloader.caches.refused"))
    assert not offers("hints", token)
    assert details(lines, "netloader.caches.refused") == [
        "compiled code is not offered: nothing was compiled that another instance could use"
    ]
    del module


def test_code_is_taken_when_vllm_is_about_to_measure_and_not_before(
    tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "root"))
    module = offering(known(tmp_path / "theirs"), token)
    assert eventually(lambda: offers("caches", token))
    ours = Worker()
    mine(token).take_when_due([where()], module, ours)
    assert not (tmp_path / "root").exists(), "vLLM still changes what its keys are made of"
    measured = ours.kv_cache.measured_by(object(), lambda: len(files(tmp_path / "root")))
    assert measured == 1
    assert ours.known is not None


# -- conditions ----------------------------------------------------------------------------------


def test_a_vllm_that_does_not_say_what_it_computes_by_costs_a_line_of_the_log(
    tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path / "model")
    local = read_config(config, config.model_config, None)

    def unknown(*_: Any) -> str:
        raise NotImplementedError

    monkeypatch.setattr(type(config.scheduler_config), "compute_hash", unknown)
    with capture() as lines:
        assert Caches.of(local, config, {}, options(token)) is None
    assert details(lines, "netloader.caches.refused") == [
        "what caches depend on is not known here: NotImplementedError"
    ]


def test_caches_are_of_the_model_that_answers_under_its_conditions(
    tmp_path: Path, token: Path
) -> None:
    config = configured(tmp_path / "model")
    local = read_config(config, config.model_config, None)
    caches = Caches.of(local, config, {"WEIGHT_CACHE": "hbm"}, options(token))
    assert caches is not None
    assert caches.kv_conditions["WEIGHT_CACHE"] == "hbm"
    assert caches.kv_conditions["max_model_len"] == "64"
    assert "WEIGHT_CACHE" not in caches.fingerprint.hard, "compiled code does not depend on it"
    assert Caches.of(replace(local, role=DRAFT), config, {}, options(token)) is None


def test_no_secret_of_the_environment_is_sent_or_logged(
    tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "0")
    with_secrets(monkeypatch)
    config = configured(tmp_path / "model")
    theirs = Caches.of(read_config(config, config.model_config, None), config, {}, options(token))
    assert theirs is not None
    what = known(tmp_path / "theirs", fingerprint=theirs.fingerprint)
    module = offering(what, token, replace(SIZE, of=theirs.kv_conditions))
    assert eventually(lambda: offers("caches", token))
    other = Identity({**theirs.fingerprint.hard, "environment": ""})
    with capture() as lines:
        hints = take_hints([where()], "tiny", options(token))
        mine(token, other).take_compiled([where()], module)
    (why,) = details(lines, "netloader.caches.refused")
    assert "VLLM_USE_AOT_COMPILE=" in why
    sent = f"{theirs.fingerprint} {hints} {lines}"
    assert [name for name in ("a secret", *SECRETS) if name in sent] == []


def test_a_cache_root_that_cannot_be_written_leaves_torch_its_own_folder(
    tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "0")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "of torch")
    config = configured(tmp_path / "model")
    local = read_config(config, config.model_config, None)
    caches = Caches.of(local, config, {}, options(token))
    assert caches is not None
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file" / "root"))
    with capture() as lines:
        known = caches.take_compiled([Endpoint("127.0.0.1", 1)], nn.Linear(1, 1))
    assert known.folders == {}
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "of torch"
    (why,) = details(lines, "netloader.caches.refused")
    assert why.startswith("compiled code is neither taken over nor offered: NotADirectoryError: ")


NO = CachePolicy.NO
HBM = CachePolicy.HBM
KEEPS_ALL = {"weight_cache": HBM, "int8_cache": CachePolicy.DRAM, "int8_cache_name": ("b", "a")}
ALL = {"WEIGHT_CACHE": "hbm", "INT8_CACHE": "dram", "INT8_CACHE_NAME": "a b", "room": "False"}
NONE = {"WEIGHT_CACHE": "no", "INT8_CACHE": "no", "INT8_CACHE_NAME": "", "room": "False"}


@pytest.mark.parametrize(
    ("changes", "device", "serves", "expected"),
    [
        ({}, "npu", True, NONE),
        ({}, "cpu", True, {**NONE, "WEIGHT_CACHE": "dram"}),
        (KEEPS_ALL, "npu", True, ALL),
        (KEEPS_ALL, "npu", False, NONE),
        ({**KEEPS_ALL, "layout": LayoutChoice.PROCESSED}, "npu", True, NONE),
        ({"standby": True}, "npu", True, NONE),
        ({"standby": True, "weight_cache": NO}, "cpu", True, {**NONE, "room": "True"}),
    ],
)
def test_what_is_kept_beside_a_model_is_a_condition_as_far_as_it_is_kept(
    tmp_path: Path, changes: dict[str, Any], device: str, serves: bool, expected: dict[str, str]
) -> None:
    config = configured(tmp_path / "model")
    local = replace(read_config(config, config.model_config, None), device_type=device)
    assert kept_at_load(settings(**changes), local, serves=serves) == expected
