"""What `netloader run` and `netloader standby` read in vLLM's command, and what stays in it."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.helpers import Ran, inside
from tests.unit.io.helpers import closed_port

FORMAT = "--load-format"
EXTRA = "--model-loader-extra-config"
OWN = {"LISTEN_PORT": 19374, "ALLOW": ["10.0.0.0/8"]}

Complete = Callable[..., Ran]


def standby(*words: str) -> Ran:
    return inside("standby", "--dry-run", "--json", "--", "vllm", "serve", *words)


def run(*words: str) -> Ran:
    """The source cannot be reached: a command that is not refused ends with the status 3."""
    where = str(closed_port())
    return inside("run", where, "--dry-run", "--json", "--", "vllm", "serve", *words)


both = pytest.mark.parametrize("complete", [standby, run])


def settings_of(ran: Ran) -> dict[str, Any]:
    command = ran.data["command"]
    assert command[-4:-1] == [FORMAT, "netloader", EXTRA]
    found: dict[str, Any] = json.loads(command[-1])
    return found


def options(tmp_path: Path, text: str) -> tuple[str, str]:
    """A file of options for vLLM."""
    file = tmp_path / "options.yaml"
    file.write_text(text)
    return "--config", str(file)


@both
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((f"{EXTRA}.SOURCE", "10.0.0.1:1"), f"give {EXTRA} as one JSON object"),
        ((f"{EXTRA}.AUTH_TOKEN_FILE=x",), f"give {EXTRA} as one JSON object"),
        (("--model_loader_extra_config.ALLOW+", "x"), f"give {EXTRA} as one JSON object"),
        (("--model-loader.SOURCE=x",), f"--model-loader is short for {EXTRA}"),
        (("--model_loader_extra", "{}"), f"--model-loader-extra is short for {EXTRA}"),
        (("--model-l={}",), f"--model-l is short for {EXTRA}"),
        (("--load-form", "auto"), f"--load-form is short for {FORMAT}"),
        (("--load_f=netloader",), f"--load-f is short for {FORMAT}"),
        ((f"{FORMAT}.x", "y"), f"give {FORMAT} as one word"),
        (("--served", "mine"), "--served is short for --served-model-name"),
        (("--trust-remote",), "--trust-remote is short for --trust-remote-code"),
        (("--config=options.yaml",), "give --config and the file as two words"),
    ],
)
def test_what_vllm_would_read_and_these_commands_would_not_is_refused(
    complete: Complete, words: tuple[str, ...], said: str
) -> None:
    ran = complete(*words)
    assert ran.code == 2
    assert said in ran.data["error"]


def test_words_of_the_program_that_starts_vllm_are_not_those_of_vllm() -> None:
    ran = inside("standby", "--dry-run", "--json", "--", "wrap", "--mo", "1", "vllm", "serve", "x")
    assert ran.data["command"][:6] == ["wrap", "--mo", "1", "vllm", "serve", "x"]


def test_the_settings_of_a_file_of_options_stay(tmp_path: Path) -> None:
    text = f"port: 8000\nmodel_loader_extra_config: {json.dumps(OWN)}\nload-format: netloader\n"
    file = options(tmp_path, text)
    assert settings_of(standby("x", *file)) == {**OWN, "STANDBY": True}
    as_text = options(tmp_path, f"model-loader-extra-config: '{json.dumps(OWN)}'")
    assert settings_of(standby("x", *as_text)) == {**OWN, "STANDBY": True}


def test_the_command_line_wins_over_a_file_of_options_as_with_vllm(tmp_path: Path) -> None:
    file = options(tmp_path, f"load-format: auto\nmodel-loader-extra-config: {json.dumps(OWN)}")
    ran = standby("x", f"{EXTRA}=" + '{"RELAY": true}', *file, FORMAT, "netloader")
    assert settings_of(ran) == {"RELAY": True, "STANDBY": True}


@both
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("load-format: auto", f"{FORMAT} auto"),
        ("load_format: safetensors", f"{FORMAT} safetensors"),
        ("load-form: auto", f"--load-form is short for {FORMAT}"),
        ("model-loader-extra-config.SOURCE: 10.0.0.1:1", f"give {EXTRA} as one JSON object"),
        ("model-loader-extra-config: {RELAY: 7}", "RELAY"),
        ("- port", "holds no options by name"),
        ("port: [1\nhunter2: {", "is no YAML, at line 2"),
    ],
)
def test_a_file_of_options_is_refused_as_the_same_words_are(
    tmp_path: Path, complete: Complete, text: str, said: str
) -> None:
    ran = complete(*options(tmp_path, text))
    assert ran.code == 2
    assert said in ran.data["error"]
    assert "hunter2" not in ran.out


@both
def test_a_file_of_options_that_is_not_there_is_named(tmp_path: Path, complete: Complete) -> None:
    ran = complete("--config", str(tmp_path / "none.yaml"))
    assert ran.code == 2
    assert f"--config {tmp_path / 'none.yaml'} cannot be read: " in ran.data["error"]
    assert "give --config and the file" in complete("--config").data["error"]


@both
def test_without_pyyaml_a_file_of_options_is_refused(
    tmp_path: Path, complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    ran = complete(*options(tmp_path, "port: 8000"))
    assert ran.code == 2
    assert "cannot be read without PyYAML" in ran.data["error"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: org/model", "leave the model out"),
        ("trust-remote-code: true", "lets the source run code here; give --trust"),
    ],
)
def test_run_refuses_in_a_file_what_it_refuses_on_the_command_line(
    tmp_path: Path, text: str, said: str
) -> None:
    assert said in run(*options(tmp_path, text)).data["error"]


def test_a_config_file_that_says_not_to_wait_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"STANDBY": false}')
    ran = standby("x", EXTRA, json.dumps({"CONFIG_FILE": str(file)}))
    assert ran.code == 2
    assert "STANDBY is false in CONFIG_FILE" in ran.data["error"]


@pytest.fixture(scope="module")
def vllm_parser() -> Any:
    """vLLM's own parser, with some of its options."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    serve = parser.add_subparsers().add_parser("serve")
    serve.add_argument("model_tag", nargs="?")
    serve.add_argument(EXTRA, type=json.loads, default={})
    serve.add_argument("--served-model-name", nargs="+")
    for option in (FORMAT, "--model", "--model-impl", "--config", "--port"):
        serve.add_argument(option)
    return parser


def test_each_command_is_refused_or_means_to_vllm_what_it_meant_and_to_wait(
    tmp_path: Path, vllm_parser: Any
) -> None:
    extras = [
        (),
        (EXTRA, '{"RELAY": true}'),
        ("--model_loader_extra_config={}", f'{EXTRA}={{"LANES": 3}}'),
        (f"{EXTRA}.LANES", "3"),
        ("--model_loader_extra_config.LANES=3",),
        ("--model-loader_e", '{"LANES": 3}'),
        ("--model-l.LANES", "3"),
    ]
    formats = [(), ("--load_format=netloader",), (FORMAT, "auto"), ("--lo", "auto")]
    texts = [
        f"{name}: {value}\nport: 8000\n"
        for name in ("model_loader_extra_config", "model-loader-extra-config", "model-loader")
        for value in ("{LANES: 4}", "'{\"LANES\": 4}'")
    ]
    kept = refused = 0
    for text, *parts in itertools.product([None, *texts, "load-format: auto"], extras, formats):
        words = [word for part in parts for word in part]
        words += [] if text is None else options(tmp_path, text)
        ran = standby("x", *words)
        if ran.code:
            refused += 1
            continue
        meant = vllm_parser.parse_args(["serve", "x", *words])
        means = vllm_parser.parse_args(ran.data["command"][1:])
        assert means.load_format == "netloader"
        wanted = {**meant.model_loader_extra_config, "STANDBY": True}
        assert means.model_loader_extra_config == wanted, words
        kept += 1
    assert min(kept, refused) > 20
