"""The targets are themselves tested: the corpus alone finds a mistake planted in the decoder."""

from pathlib import Path
from types import ModuleType

import pytest

from netloader.wire import frames
from tests.fuzz import conversation, shrink, targets
from tests.fuzz.test_corpus import FILES

SOURCE = Path(frames.__file__).read_text()


def broken(monkeypatch: pytest.MonkeyPatch, right: str, wrong: str) -> set[str]:
    """Plant it in a copy of the decoder; what the corpus then finds, as `target/file`."""
    assert SOURCE.count(right) == 1, f"frames.py has changed; plant {wrong!r} elsewhere"
    copy = ModuleType("planted")
    exec(compile(SOURCE.replace(right, wrong), "planted.py", "exec"), copy.__dict__)
    for user in (targets, conversation, shrink):
        monkeypatch.setattr(user, "Decoder", copy.__dict__["Decoder"])
    return {
        f"{file.parent.name}/{file.name}"
        for file in FILES
        if shrink.complaint(file.parent.name, file.read_bytes())
    }


@pytest.mark.parametrize(
    ("right", "wrong", "finds"),
    [
        pytest.param(
            "        self._dead = True\n",
            "",
            "stream/refused-the-first-and-everything-after-it-unheard",
            id="a decoder that goes on after a violation",
        ),
        pytest.param(
            "        self._buffer.clear()\n",
            "",
            "stream/refused-a-frame-then-garbage-then-a-frame",
            id="a dead decoder that keeps what it held",
        ),
        pytest.param(
            "end = HEADER.size + length\n",
            "end = HEADER.size + length - 1\n",
            "stream/heard-two-messages-in-one-packet",
            id="a frame read one byte short",
        ),
        pytest.param(
            "if length > self.limit:",
            "if length >= self.limit:",
            "stream/heard-a-document-of-exactly-the-limit",
            id="a limit one byte short",
        ),
        pytest.param(
            "if length > self.limit:",
            "if length > self.limit + 1:",
            "stream/refused-a-document-one-byte-over-the-limit",
            id="a limit one byte long",
        ),
        pytest.param(
            "if not PREFIX.startswith(start):",
            "if not PREFIX.startswith(start[:4]):",
            "stream/refused-another-version-of-frames",
            id="a version nobody looks at",
        ),
        pytest.param(
            "msgspec.json.Decoder(kind)",
            "msgspec.json.Decoder(kind, strict=False)",
            "documents/refused-complete-a-string-of-digits",
            id="a text taken for a number",
        ),
        pytest.param(
            "body.decode(envelope.body)",
            "body.decode(bytes(envelope.body).replace(b'true', b'1'))",
            "documents/refused-complete-true",
            id="a truth taken for a number",
        ),
        pytest.param(
            'return Violated("a message of an unknown kind")',
            'return Violated(f"a message of kind {envelope.kind}")',
            "documents/refused-a-kind-nobody-knows",
            id="a violation in the peer's words",
        ),
    ],
)
def test_a_planted_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, right: str, wrong: str, finds: str
) -> None:
    assert finds in broken(monkeypatch, right, wrong)


def test_nothing_is_found_where_nothing_is_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert broken(monkeypatch, "_dead = True", "_dead = True") == set()
