"""Passwords in settings reach vLLM in a file: anybody may read the arguments of a process."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from netloader.vllm_plugin.config.settings import Settings
from tests.unit.cli.helpers import Ran, inside, netloader
from tests.unit.cli.test_run import VLLM, dry, offering, settings_in

EXTRA = "--model-loader-extra-config"
PASSWORD = "hunter2"
URL = f"redis://:{PASSWORD}@10.0.0.1:6379/fleet"


def standby(cache: Path, *words: str) -> Ran:
    env = {"NETLOADER_CACHE": str(cache)}
    return inside("standby", "--dry-run", "--json", "--", "vllm", "serve", "x", *words, env=env)


def extra_of(**settings: object) -> tuple[str, str]:
    return EXTRA, json.dumps(settings)


def moved(ran: Ran, cache: Path) -> dict[str, Any]:
    """What the file holds that the command names, which is for its owner's eyes."""
    assert ran.code == 0, ran
    assert PASSWORD not in ran.out + ran.err
    file = Path(settings_in(ran.data["command"])["CONFIG_FILE"])
    assert file.parent == cache / "settings"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert PASSWORD not in str(file)
    held: dict[str, Any] = json.loads(file.read_text())
    return held


@pytest.mark.parametrize(
    "field",
    [
        {"SOURCE": URL},
        {"SOURCE": ["10.0.0.1:1", URL]},
        {"SOURCE": [{"device_id": 0, "sources": [URL]}]},
        {"PUBLISH": URL},
        {"FALLBACK": {"load_format": "auto", "model_loader_extra_config": {"key": PASSWORD}}},
    ],
)
def test_a_setting_with_a_credential_is_in_a_file_and_no_other(
    tmp_path: Path, field: dict[str, object]
) -> None:
    ran = standby(tmp_path, *extra_of(LISTEN_PORT=19374, **field))
    assert moved(ran, tmp_path) == field
    extra = settings_in(ran.data["command"])
    assert {name: extra[name] for name in extra if name != "CONFIG_FILE"} == {
        "LISTEN_PORT": 19374,
        "STANDBY": True,
    }
    whole = {"LISTEN_PORT": 19374, "STANDBY": True, **field}
    assert Settings.parse(extra).sources == Settings.parse(whole).sources
    assert Settings.parse(extra).fallback == Settings.parse(whole).fallback


def test_run_moves_them_as_well(tmp_path: Path) -> None:
    with offering() as server:
        ran = dry(server.endpoint, tmp_path, *VLLM, *extra_of(SOURCE=URL))
    assert moved(ran, tmp_path) == {"SOURCE": URL}
    assert settings_in(ran.data["command"])["MODEL"] == "inner"


def test_the_same_settings_have_one_file_that_no_other_user_can_read_or_write(
    tmp_path: Path,
) -> None:
    first, again = (
        settings_in(standby(tmp_path, *extra_of(SOURCE=URL)).data["command"]) for _ in "ab"
    )
    assert first == again
    Path(first["CONFIG_FILE"]).chmod(0o644)
    other = standby(tmp_path, *extra_of(SOURCE=URL))
    assert moved(other, tmp_path) == {"SOURCE": URL}
    assert settings_in(other.data["command"]) != first


def test_a_config_file_that_is_there_still_wins(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"SOURCE": "10.0.0.1:1", "PUBLISH": None, "RELAY": True}))
    ran = standby(tmp_path, *extra_of(SOURCE=URL, PUBLISH=URL, CONFIG_FILE=str(own)))
    assert moved(ran, tmp_path) == {"SOURCE": "10.0.0.1:1", "PUBLISH": URL, "RELAY": True}


def test_without_credentials_nothing_is_written(tmp_path: Path) -> None:
    ran = standby(tmp_path / "cache", *extra_of(SOURCE="10.0.0.1:1", FALLBACK="never"))
    assert "CONFIG_FILE" not in settings_in(ran.data["command"])
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("")
    ran = standby(tmp_path, *extra_of(SOURCE=URL))
    assert ran.code == 5
    assert f"{tmp_path / 'settings'} cannot be used: " in ran.data["error"]
    assert PASSWORD not in ran.out


@pytest.mark.parametrize(
    "words",
    [("--api-key", PASSWORD, PASSWORD), (f"--api-key={PASSWORD}",), ("--hf_token", PASSWORD)],
)
def test_keys_of_vllm_are_not_written_out(tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = standby(tmp_path, *words, "--port", "8000")
    text = inside("standby", "--dry-run", "--", "vllm", "serve", "x", *words)
    assert PASSWORD not in ran.out + text.out
    assert ran.data["command"][-6:-4] == ["--port", "8000"]
    assert "***" in ran.data["command"][-7]


def test_vllm_gets_its_key_and_nobody_reads_it_in_what_is_said(tmp_path: Path) -> None:
    engine = tmp_path / "vllm"
    engine.write_text('#!/bin/sh\necho "$@" > "$0.words"\n')
    engine.chmod(0o755)
    words = (str(engine), "serve", "--api-key", PASSWORD)
    with offering() as server:
        env = {"NETLOADER_CACHE": str(tmp_path)}
        ran = netloader("run", str(server.endpoint), "--json", "--", *words, env=env)
    assert ran.code == 0, ran
    assert f"--api-key {PASSWORD} " in (tmp_path / "vllm.words").read_text()
    assert "command" not in ran.data
    assert PASSWORD not in ran.out + ran.err


@pytest.mark.parametrize("url", [URL.replace("10.0.0.1", "127.0.0.1:1"), f"redis://:{PASSWORD}@:/"])
def test_a_source_that_cannot_be_asked_keeps_its_password(tmp_path: Path, url: str) -> None:
    ran = inside("run", url, "--json", "--dry-run", *VLLM, env={"NETLOADER_CACHE": str(tmp_path)})
    assert ran.code
    assert PASSWORD not in ran.out + ran.err
