"""Tokens are changed while servers and clients run: nobody is refused meanwhile."""

from pathlib import Path

import pytest

from netloader.config import Endpoint, Secret
from netloader.fsm.reasons import Reason
from netloader.io import ClientOptions, ServerOptions
from netloader.log import capture
from netloader.secure.tokens import MOST, TokenFile, Tokens
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import IDENTITY, asking, serving, zoo

OLD, NEW = "the token until now", "the token from now on"
RELOADED, UNREADABLE = "netloader.secret.reloaded", "netloader.secret.unreadable"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the token that holds until now."""
    write(file := tmp_path / "tokens", OLD)
    return file


def write(path: Path, *lines: str) -> None:
    """Put a new file in the place of the old one, as editors and mounted secrets do."""
    other = path.with_suffix(".new")
    other.write_text("\n".join(lines))
    other.replace(path)


def ends(at: Endpoint, token: Tokens) -> Reason:
    return fill(zoo(2), [at], IDENTITY, asking(token=token)).attempts[-1].reason


@pytest.mark.usefixtures("driver")
def test_a_token_is_changed_in_three_steps_and_at_each_one_those_that_may_are_served(
    path: Path,
) -> None:
    old, new = Secret(OLD), Secret(NEW)
    with serving(zoo(1), token=TokenFile(path)) as server:
        at = server.endpoint
        assert (ends(at, old), ends(at, new)) == (Reason.VERIFIED, Reason.AUTH_FAILED)
        write(path, OLD, NEW)
        assert (ends(at, old), ends(at, new)) == (Reason.VERIFIED, Reason.VERIFIED)
        write(path, NEW)
        assert (ends(at, old), ends(at, new)) == (Reason.AUTH_FAILED, Reason.VERIFIED)


@pytest.mark.usefixtures("driver")
def test_a_client_offers_the_first_token_of_its_file(path: Path) -> None:
    tokens = TokenFile(path)
    with serving(zoo(1), token=(Secret(NEW), Secret("a third token of ours"))) as server:
        assert ends(server.endpoint, tokens) is Reason.AUTH_FAILED
        write(path, OLD, NEW)
        assert ends(server.endpoint, tokens) is Reason.AUTH_FAILED
        write(path, NEW, OLD)
        assert ends(server.endpoint, tokens) is Reason.VERIFIED


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "16 characters"),
        (b"short-secret", "16 characters"),
        (NEW.encode() + b"\xff", "UTF-8"),
        (b"\n".join([NEW.encode()] * (MOST + 1)), "17 tokens; 16 are allowed"),
    ],
)
def test_a_file_that_has_become_unusable_changes_nothing_and_is_told_once(
    path: Path, content: bytes | None, why: str
) -> None:
    tokens = TokenFile(path)
    with capture() as lines:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert [tokens.tokens() for _ in range(3)] == [(Secret(OLD),)] * 3
        write(path, NEW)
        assert tokens.tokens() == (Secret(NEW),)
    assert [line["event"] for line in lines] == [UNREADABLE, RELOADED]
    assert why in lines[0]["netloader.detail"]
    assert str(path) in lines[0]["netloader.files"]
    assert not [secret for secret in (OLD, NEW, "short-secret") if secret in str(lines)]


def test_tokens_are_shown_nowhere(path: Path) -> None:
    write(path, OLD, "", f"  {NEW} ", "")
    tokens = TokenFile(path)
    assert tokens.tokens() == (Secret(OLD), Secret(NEW))
    shown = repr(tokens) + str(ServerOptions(token=tokens)) + str(ClientOptions(token=tokens))
    assert OLD not in shown


@pytest.mark.parametrize("kind", [ServerOptions, ClientOptions])
def test_a_list_of_tokens_has_one_at_least(kind: type[ServerOptions | ClientOptions]) -> None:
    with pytest.raises(ValueError, match="token has 0 tokens; give 1 to 16"):
        kind(token=())
    with pytest.raises(TypeError, match=r"token\[1\] is of type str; wrap the text"):
        kind(token=(Secret(OLD), NEW))  # type: ignore[arg-type]
