"""A frame read a second time, with nothing but the standard library: slow, plain, and not ours.

The decoder under test reads with msgspec; this reads with `json` and looks at every type itself.
Where the two disagree, one of them is wrong.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from types import UnionType
from typing import Any, Final, TypeAlias, get_args, get_origin, get_type_hints

from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.fsm.messages import Candidate, Lane, Message, Status
from netloader.wire.frames import Spoken

KINDS: Final[Mapping[str, type[Spoken]]] = {
    kind.__name__.lower(): kind for kind in (*get_args(Message), Lane)
}
HINTS: Final[Mapping[type[Any], Mapping[str, Any]]] = {
    kind: get_type_hints(kind)
    for kind in (*KINDS.values(), Candidate, Status, Identity, Difference, Manifest, TensorSpec)
}
DEEPEST: Final = 50
"""Readers stop at different depths, so nothing is promised about a document nested deeper."""


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What a document says; `sure` when no reader may see it differently."""

    message: Spoken
    sure: bool


@dataclasses.dataclass(frozen=True)
class Misfit:
    """The document is no message, and why."""

    why: str


class _MisfitError(Exception):
    """Found deep in a document."""


Pairs: TypeAlias = list[tuple[str, Any]]


def opinion(document: bytes) -> Opinion | Misfit:
    """Read a document; bytes that are no text are forgiven where nobody looks at them."""
    try:
        return _read(document)
    except (ValueError, RecursionError, _MisfitError) as error:
        return Misfit(str(error))


def _read(document: bytes) -> Opinion:
    repeated = False

    def gather(pairs: Pairs) -> dict[str, Any]:
        nonlocal repeated
        repeated = repeated or len(dict(pairs)) < len(pairs)
        return dict(pairs)

    text = document.decode("utf-8", "surrogateescape")
    said = json.loads(text, object_pairs_hook=gather, parse_constant=_no_number)
    if not isinstance(said, dict) or not _is_text(said.get("kind")) or "body" not in said:
        raise _MisfitError("no envelope")
    if said["kind"] not in KINDS:
        raise _MisfitError("no kind that is known")
    message: Spoken = _built(KINDS[said["kind"]], said["body"])
    return Opinion(message, not repeated and _is_plain(said, DEEPEST))


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can carry: half a surrogate pair is none."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_plain(value: object, depth: int) -> bool:
    match value:
        case dict():
            inside = [*value.keys(), *value.values()]
        case list():
            inside = value
        case str():
            return _is_text(value)
        case _:
            return True
    return depth > 0 and all(_is_plain(item, depth - 1) for item in inside)


def _built(hint: Any, value: Any) -> Any:
    """`value` as the type `hint` asks for, or _MisfitError; no value is ever bent into a type."""
    origin = get_origin(hint)
    if origin is UnionType:
        wanted, _ = get_args(hint)  # a type, or nothing
        return None if value is None else _built(wanted, value)
    if origin is tuple and isinstance(value, list):
        kinds = get_args(hint)
        if Ellipsis not in kinds and len(kinds) != len(value):
            raise _MisfitError(f"{len(value)} values, not {len(kinds)}")
        return tuple(_built(kinds[0], item) for item in value)
    if hint is TensorSpec and isinstance(value, list):  # fields in order, the last ones optional
        if len(value) > len(HINTS[hint]):
            raise _MisfitError(f"{len(value)} values, not {len(HINTS[hint])}")
        return _filled(hint, dict(zip(HINTS[hint], value, strict=False)))
    if origin is Mapping and isinstance(value, dict):
        key, item = get_args(hint)
        return {_built(key, k): _built(item, v) for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _filled(hint, value)
    if isinstance(hint, type) and issubclass(hint, Enum) and value in [e.value for e in hint]:
        return hint(value)
    return _scalar(hint, value)


def _filled(kind: type[Any], value: dict[str, Any]) -> Any:
    hints = HINTS[kind].items()
    given = {name: _built(hint, value[name]) for name, hint in hints if name in value}
    try:
        return kind(**given)
    except TypeError as error:
        raise _MisfitError("a field is missing") from error


def _scalar(hint: Any, value: Any) -> Any:
    if hint is str and _is_text(value):
        return value
    if hint is int and type(value) is int:
        return value
    if hint is float and type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError as error:
            raise _MisfitError("a number beyond all floats") from error
        if math.isfinite(number):
            return number
    raise _MisfitError(f"{value!r:.40} is no {hint}")


def marks(document: bytes) -> set[str]:
    """Where in a document which types are: `offer.manifest.tensors[].nbytes int`.

    Only along the schema, so that there is an end to what can be found.
    """
    try:
        said = json.loads(document)
        kind, body = said["kind"], said["body"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return set()
    found: set[str] = set()
    known = KINDS.get(kind) if isinstance(kind, str) else None
    _mark(found, kind if known else "*", known, body)
    return found


def _mark(found: set[str], path: str, hint: Any, value: Any) -> None:
    found.add(f"{path} {_sort(value)}")
    if get_origin(hint) is UnionType:
        hint = get_args(hint)[0]
    if hint in HINTS and isinstance(value, dict):
        for name in value:
            known = HINTS[hint].get(name)
            _mark(found, f"{path}.{name if known else '*'}", known, value[name])
    elif get_origin(hint) is tuple and isinstance(value, list):
        for item in value:
            _mark(found, f"{path}[]", get_args(hint)[0], item)
    elif get_origin(hint) is Mapping and isinstance(value, dict):
        for item in value.values():
            _mark(found, f"{path}[]", get_args(hint)[1], item)


def _sort(value: Any) -> str:
    """The type of a value, and for numbers and texts of which sort."""
    match value:
        case bool() | None:
            return str(value)
        case int():
            size = 0 if abs(value) < 2 else 1 if abs(value) < 2**63 else 2
            return f"int {'-' * (value < 0)}{size}"
        case str():
            return f"str {'plain' if value.isascii() and value.isprintable() else 'odd'}"
        case dict() | list():
            return f"{type(value).__name__} {min(len(value), 2)}"
        case _:
            return type(value).__name__
