"""The tokens of a server or a client: one, several, or those of a file, which may change."""

import contextlib
from pathlib import Path
from typing import Any, TypeAlias

from netloader.config import Secret, check_type
from netloader.secure.files import WatchedFiles

MOST = 16
"""Tokens at once. A challenge carries a proof for each of them."""
MIN_CHARS = 16
"""An attacker who records a handshake can try tokens offline; shorter ones can be found."""
MAX_FILE_BYTES = 1 << 20


class TokenFile:
    """The tokens in a file, one a line; read again when the file has changed. Thread-safe.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no token, too many, or one that is too short. Tokens are not shown.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._file = WatchedFiles((self._path,), self._read)

    def __repr__(self) -> str:
        return f"TokenFile({str(self._path)!r})"

    def tokens(self) -> tuple[Secret, ...]:
        """The tokens, in their order."""
        return self._file.value

    def _read(self) -> tuple[Secret, ...]:
        with self._path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
        lines = _text(data).splitlines()
        found = tuple(Secret(line.strip()) for line in lines if line.strip())
        if not found or any(len(each.reveal()) < MIN_CHARS for each in found):
            raise ValueError(f"each line must hold a token of {MIN_CHARS} characters or more")
        if len(found) > MOST:
            raise ValueError(f"the file has {len(found)} tokens; {MOST} are allowed")
        return found


def _text(data: bytes) -> str:
    with contextlib.suppress(UnicodeDecodeError):  # its traceback would carry the bytes
        return data.decode("utf-8-sig")
    raise ValueError("the file must be UTF-8 text")


Tokens: TypeAlias = Secret | tuple[Secret, ...] | TokenFile | None
"""What a peer must know. A server takes any of them, a client has the first; None: no token."""


def check_tokens(name: str, value: Any) -> None:
    """Refuse an option that is none of `Tokens`: TypeError or ValueError; no secret is shown."""
    remedy = "wrap the text: Secret(text)"
    if isinstance(value, tuple):
        for i, each in enumerate(value):
            check_type(f"{name}[{i}]", each, Secret, remedy)
        if not 1 <= len(value) <= MOST:
            raise ValueError(f"{name} has {len(value)} tokens; give 1 to {MOST}")
    else:
        check_type(name, value, Secret | TokenFile | None, remedy)


def current(tokens: Tokens) -> tuple[Secret, ...]:
    """The tokens that hold now, in order; none: no token is asked for."""
    match tokens:
        case None:
            return ()
        case Secret():
            return (tokens,)
        case TokenFile():
            return tokens.tokens()
        case _:
            return tokens
