"""The files an extra config names, and the secrets that neither it nor they may betray."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloader.config import Secret
from netloader.errors import ConfigError
from netloader.secure.tokens import current
from netloader.vllm_plugin.config.readers import MAX_FILE_BYTES
from netloader.vllm_plugin.config.settings import FIELDS, Settings
from tests.unit.vllm_plugin.config.refused import PLANTED, problems_of

Write = Callable[[str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file and give its path."""

    def writer(content: str | bytes) -> str:
        path = tmp_path / "netloader.json"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return writer


# CONFIG_FILE


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_the_file_says_wins_over_the_inline_fields(write: Write, mark: bytes) -> None:
    path = write(mark + b'{"MODEL": "file", "LANES": 3, "SOURCE": null}')

    settings = Settings.parse(
        {
            "CONFIG_FILE": path,
            "MODEL": "inline",
            "MAX_CLIENTS": 5,
            "SOURCE": [{"device_id": 2, "sources": ["a:1"]}],
            "LANES": "wrong, but not in force",
        }
    )

    assert (settings.model, settings.lanes, settings.max_clients) == ("file", 3, 5)
    assert list(settings.sources) == [2]
    assert settings.config_file == path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[]", ": a list of 0 cannot be used; give a JSON object of fields"),
        (b"5", ": 5 cannot be used; give a JSON object of fields"),
        (b"null", ": 'null' cannot be used; give a JSON object of fields"),
        (b'"x"', ": 'x' cannot be used; give a JSON object of fields"),
        (b"", " cannot be used; the file is no JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{", " cannot be used; the file is no JSON: Expecting property name"),
        (b"[" * 100_000, " cannot be used; the file is no JSON: "),
        (b'{"LANES": ' + b"9" * 5000 + b"}", " cannot be used; the file is no JSON: "),
        (b"\xff\xfe{", " cannot be used; the file must be UTF-8 text"),
        (b" " * (MAX_FILE_BYTES + 1), f" cannot be used; the file is larger than {MAX_FILE_BYTES}"),
        (b'{"LANES": 99}', ": LANES: 99 cannot be used; give an integer from 1 to 16"),
        (b'{"lanes": 9}', ": there is no field 'lanes'; did you mean LANES?"),
        (b'{"CONFIG_FILE": "x"}', ": CONFIG_FILE: 'x' cannot be used; a CONFIG_FILE cannot name"),
        (
            b'{"SOURCE": [{"device_id": 0, "sources": ["h"]}]}',
            ": SOURCE[0].sources[0]: endpoint 'h': write host:port or [IPv6]:port",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_name(write: Write, content: bytes, problem: str) -> None:
    path = write(content)

    problems = problems_of({"CONFIG_FILE": path})

    assert len(problems) == 1
    assert problems[0].startswith("CONFIG_FILE")
    assert path[:70] in problems[0]
    assert problem in problems[0]


def test_a_file_that_is_none_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for value, remedy in (
        (str(tmp_path), "give the path of a file"),
        (str(tmp_path / "pipe"), "give the path of a file"),
        (str(tmp_path / "missing"), "the file cannot be read: No such file or directory"),
        ("x" * 5000, "the file cannot be read: File name too long"),
        ("a\0b", "give the path of a file"),
        ("", "give the path of a file"),
        (5, "give the path of a file"),
    ):
        assert problems_of({"CONFIG_FILE": value})[0].endswith(remedy)


def test_inline_fields_are_checked_even_when_the_file_is_wrong() -> None:
    assert len(problems_of({"CONFIG_FILE": "/nonexistent", "LANES": 0})) == 2


# Secrets

SHORT = "each line must hold a token of 16 characters or more"


def test_the_token_is_read_from_its_file_and_never_shown(write: Write) -> None:
    settings = Settings.parse({"AUTH_TOKEN_FILE": write(f"\ufeff  {PLANTED}\n")})

    assert current(settings.token) == (Secret(PLANTED),)
    assert PLANTED not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", SHORT),
        (
            PLANTED.encode() + b"\nshort-secret \n",
            SHORT,
        ),
        (PLANTED.encode() + b"\xff", "the file must be UTF-8 text"),
        (PLANTED.encode() * 2**16, f"the file is larger than {MAX_FILE_BYTES} bytes"),
    ],
)
def test_a_token_file_that_is_wrong_is_refused_without_its_content(
    write: Write, content: bytes, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.parse({"AUTH_TOKEN_FILE": write(content)})

    hidden = "AUTH_TOKEN_FILE: the value, which is not shown, cannot be used"
    assert caught.value.problems == (f"{hidden}; {remedy}",)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert PLANTED not in shown
    assert "short-secret" not in shown
    assert caught.value.__context__ is None


def test_a_token_in_a_file_of_16_characters_is_long_enough(write: Write) -> None:
    assert Settings.parse({"AUTH_TOKEN_FILE": write("0123456789abcdef")}).token is not None


@pytest.mark.parametrize(
    "extra",
    [
        {"AUTH_TOKEN_FILE": PLANTED},
        {"AUTH_TOKEN_FILE": f"/{PLANTED}"},
        {"AUTH_TOKEN_FILE": [PLANTED]},
        {"AUTH_TOKEN": PLANTED},
        {"TOKEN": PLANTED, "TLS_KEY": PLANTED},
        {"TLS_KEY": f"-----BEGIN PRIVATE KEY-----\n{PLANTED}", "TLS_CERT": "/none.pem"},
        {"TLS_KEY": PLANTED, "TLS_CERT": "/none.pem"},
        {"MODEL": {"password": PLANTED}},
        {"FALLBACK": {"load_format": "netloader", "model_loader_extra_config": {"key": PLANTED}}},
        {"FALLBACK": {"load_format": "auto", "model_loader_extra_config": [PLANTED]}},
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(extra: dict[str, object]) -> None:
    assert PLANTED not in "".join(problems_of(extra))


def test_the_credentials_of_the_fallback_are_not_shown() -> None:
    extra = {"load_format": "runai_streamer", "model_loader_extra_config": {"key": PLANTED}}

    assert PLANTED not in repr(Settings.parse({"FALLBACK": extra}))


# Anything at all

SECRET_FIELDS = st.sampled_from(["AUTH_TOKEN_FILE", "AUTH_TOKEN", "TLS_KEY"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["auto", "never", "netloader", "h:1", "[::1]:2", "/etc/passwd", "/dev"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["device_id", "sources", "load_format", "model_loader_extra_config"])
            | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
NAMES = st.sampled_from([row.name for row in FIELDS]) | st.text()


@hypothesis.settings(deadline=None)
@given(extra=st.dictionaries(NAMES, JSON), secrets=st.dictionaries(SECRET_FIELDS, st.just(PLANTED)))
def test_any_json_object_gives_settings_or_one_readable_error(
    extra: dict[str, object], secrets: dict[str, object]
) -> None:
    problems: tuple[str, ...] = ()
    shown = ""
    try:
        shown = repr(Settings.parse({**extra, **secrets}))
    except ConfigError as error:
        problems = error.problems
        shown = str(error) + repr(error) + "".join(traceback.format_exception(error))

    assert problems or not secrets
    assert all(problem.isprintable() for problem in problems)
    assert PLANTED not in shown
