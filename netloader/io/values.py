"""Plain data as JSON and back. What comes back has the types that went in, and no code runs.

Numbers, strings, True, False and None are themselves. Everything else is a list that begins with
its kind: `["tuple", [...]]`. Tensors are left to the caller, who gives each a JSON form of its own.
"""

import base64
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "size"}
MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered"}
MAX_DEPTH = 100


class NotPlainError(TypeError):
    """A value of a type that is not sent; the message names the type and where it was found."""


def encode(value: object, tensor: Callable[[Tensor], Any]) -> str:
    """A value as JSON; `tensor` gives the form of each tensor in it.

    Raises:
        NotPlainError: there is something else than plain data and tensors in it.
    """
    return json.dumps(_form(value, tensor, ""), separators=(",", ":"))


def _form(value: object, tensor: Callable[[Tensor], Any], where: str, depth: int = 0) -> Any:
    kind = type(value)
    if depth > MAX_DEPTH:
        raise NotPlainError(f"{where or 'it'} is nested too deep")
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return ["tensor", tensor(value)]
    if kind in (bytes, bytearray):
        return [kind.__name__, base64.b64encode(value).decode()]  # type: ignore[arg-type]
    if kind is torch.dtype:
        return ["dtype", str(value).removeprefix("torch.")]
    if kind in SEQUENCES:
        items = enumerate(value)  # type: ignore[var-annotated, arg-type]
        return [SEQUENCES[kind], [_form(v, tensor, f"{where}[{i}]", depth + 1) for i, v in items]]
    if kind in MAPPINGS:
        pairs = [
            [_key(k, where), _form(v, tensor, f"{where}[{k!r}]", depth + 1)]
            for k, v in value.items()  # type: ignore[attr-defined]
        ]
        return [MAPPINGS[kind], pairs]
    raise NotPlainError(f"{where or 'it'} is a {kind.__module__}.{kind.__qualname__}")


def _key(key: object, where: str) -> str | int | None:
    if key is None or type(key) in (str, int, bool):
        return key  # type: ignore[return-value]
    raise NotPlainError(f"a key of {where or 'it'} is a {type(key).__qualname__}")


def decode(text: str, tensor: Callable[[Any], Tensor]) -> object:
    """The value that `encode` was given.

    Raises:
        ValueError: `encode` did not write this.
    """
    try:
        return _value(json.loads(text), tensor)
    except (TypeError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"not a value that netloader encoded: {error}") from error


def _value(form: Any, tensor: Callable[[Any], Tensor]) -> object:
    if not isinstance(form, list):
        if isinstance(form, dict):
            raise TypeError("an object")
        return form
    kind, content = form
    if kind == "tensor":
        return tensor(content)
    if kind in ("bytes", "bytearray"):
        plain = base64.b64decode(content, validate=True)
        return plain if kind == "bytes" else bytearray(plain)
    if kind == "dtype":
        return dtype_of(content)
    for make, name in SEQUENCES.items():
        if kind == name:
            return make(_value(item, tensor) for item in content)
    make_mapping = {name: make for make, name in MAPPINGS.items()}[kind]
    return make_mapping((key, _value(item, tensor)) for key, item in content)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of this name.

    Raises:
        TypeError: torch has none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"no dtype: {name!r}")
    return dtype
