"""How single fields are read: a reader gives an option, or notes what is wrong and what to do."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from netloader.config import MAX_RAILS, Place, Secret, address, bandwidth, each, one, text_line
from netloader.fsm.digest_choice import CHOICES

MAX_FILE_BYTES: Final = 2**20
"""A thousand ranks with ten sources each need 300 KiB; more is a wrong path."""

EVERY: Final = "*"
"""The LISTEN_HOST that means every address."""

HIDDEN: Final = Secret("")
"""Shown in errors in place of a value that is, or might be, a secret."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """The loader that takes over when no source works: vLLM's load format and its extra config."""

    load_format: str
    extra: Mapping[str, object] = field(default_factory=dict, repr=False)  # may hold credentials


port: Final = one(  # any integer: one that is no usable port means "no listener", as the guide says
    int | str,
    lambda p: isinstance(p, int) or re.fullmatch("[0-9]{1,9}", p),
    "give an integer, 1024 to 65535 (any other: no listener)",
    int,
)


def bytes_per_s(at: Place, value: object) -> int | None:
    """Read a bandwidth."""
    try:
        return bandwidth(value)
    except ValueError as error:
        at.problems.append(f"{at.path}: {error}")
        return None


choice_of_digest: Final = one(
    str, lambda t: t.lower() in CHOICES, f"give one of {', '.join(CHOICES)}", str.lower
)


def folder(at: Place, value: object) -> Path | None:
    """Read the path of a folder, which need not be there yet."""
    text = text_line(at, value)
    if text is None:
        return None
    path = Path(text)
    if not path.is_absolute():
        at.refuse(value, "give an absolute path, of a folder on a disk of this host")
    elif path.exists() and not path.is_dir():
        at.refuse(value, "there is something else at this path; give that of a folder")
    return path


def rails(at: Place, value: object) -> tuple[str, ...]:
    """Read the addresses of network interfaces."""
    given: tuple[str | None, ...] = each(text_line)(at, value)
    for i, text in enumerate(given):
        try:
            address(text or "::1")  # of one that is no text, `each` has noted it
        except ValueError as error:
            at.problems.append(f"{at.path}[{i}]: {error}")
    if len(given) > MAX_RAILS:
        at.refuse(value, f"give at most {MAX_RAILS}")
    return tuple(text or "" for text in given)


_load_format: Final = one(
    str,
    lambda t: t.isprintable() and t.strip().lower() not in ("", "netloader"),
    'give a load format other than netloader itself, such as "auto", or "never"',
    str.strip,
)


def fallback(at: Place, value: object) -> Fallback | None:
    """Read the loader that takes over; None for `never`."""
    given = {"load_format": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        at.refuse(value, 'give a load format, "never", or {"load_format": "..."}')
        return None
    at.refuse_unknown(given, ("load_format", "model_loader_extra_config"))
    spot = at if given is not value else at.inside(".load_format")
    name = _load_format(spot, given.get("load_format"))
    extra = given.get("model_loader_extra_config")
    if not isinstance(extra, Mapping | None):
        at.inside(".model_loader_extra_config").refuse(HIDDEN, "give a JSON object")
    elif name is not None and name.lower() != "never":
        return Fallback(name, dict(extra or {}))
    return None


def switch(at: Place, value: object) -> bool | None:
    """Read true or false."""
    if isinstance(value, bool):
        return value
    at.refuse(value, "give true or false")
    return None


def file_text(at: Place, value: object, as_shown: object) -> str | None:
    """What the UTF-8 file at the path `value` says, without its byte-order mark."""
    path = Path(value if isinstance(value, str) and value.isprintable() else "")
    problem = "give the path of a file"
    try:
        if path.is_file() or not path.exists():  # to open a pipe would be to wait for its writer
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) <= MAX_FILE_BYTES:
                return data.decode("utf-8-sig")
            problem = f"the file is larger than {MAX_FILE_BYTES} bytes"
    except OSError as error:
        problem = f"the file cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "the file must be UTF-8 text"
    at.refuse(as_shown, problem)
    return None
