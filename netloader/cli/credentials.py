"""Settings of an instance that hold credentials, in a file of their owner.

Anybody on a host may read the arguments of a process, and vLLM logs its own.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from netloader.cli.answers import CommandError
from netloader.cli.codes import Code
from netloader.cli.configuration import object_of
from netloader.errors import cause
from netloader.files.cache import CACHE_VARIABLE, cache_root
from netloader.files.regular import read_regular

NAMED: Final = "CONFIG_FILE"
"""The field that names a file of further fields, which win over those beside it."""


def without_credentials(extra: Mapping[str, object]) -> Mapping[str, object]:
    """The same settings; those that may hold a credential are in a file that CONFIG_FILE names.

    The file is in `settings` beside the cache of files. It has what a CONFIG_FILE that is already
    named holds, too, because there can be one only.

    Raises:
        CommandError: the file cannot be written, or the one that is named cannot be read.
    """
    held = {name: value for name, value in extra.items() if _may_hold_one(value)}
    if not held:
        return extra
    above = _fields_in(extra[NAMED]) if NAMED in extra else {}
    file = _kept(json.dumps({**held, **above}).encode())
    inline = {name: value for name, value in extra.items() if name not in held}
    return {**inline, NAMED: str(file)}


def _may_hold_one(value: object) -> bool:
    """Whether a value is a URL with a user or a password, or for another loader to understand."""
    text = json.dumps(value)
    return isinstance(value, Mapping) or ("://" in text and "@" in text)


def _fields_in(path: object) -> Mapping[str, object]:
    try:
        fields = object_of(Path(str(path)).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(Code.USAGE, f"{NAMED} cannot be read: {cause(error)}") from error
    return {name: value for name, value in fields.items() if value is not None}


def _kept(content: bytes) -> Path:
    """A file with this content, for its owner only.

    Its name tells nothing of the content: a digest would let others try passwords.
    """
    folder = cache_root(os.environ).with_name("settings")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            if _holds(path, content):
                return path
        handle, name = tempfile.mkstemp(suffix=".json", prefix="", dir=folder)  # of mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    except OSError as error:
        what = f"{error.filename or folder} cannot be used: {cause(error)}"
        raise CommandError(
            Code.FAILED, f"{what}; name another folder in {CACHE_VARIABLE}"
        ) from error
    return Path(name)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content, and only its owner can read or change it."""
    try:
        status = path.lstat()
        private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        return private and read_regular(path, len(content) + 1) == content
    except OSError:
        return False
