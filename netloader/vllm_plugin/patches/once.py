"""Wrap a function of vLLM's for as long as the process runs."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

WRAPPED: Final = "netloader_wrapped"
"""The attribute by which a wrapped function is known."""


def wrap_once(holder: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Put `wrap(function)` in the place of a function of a class or a module.

    A second call changes nothing.
    """
    function = getattr(holder, name)
    if not hasattr(function, WRAPPED):
        wrapped = wraps(function)(wrap(function))
        setattr(wrapped, WRAPPED, True)
        setattr(holder, name, wrapped)
