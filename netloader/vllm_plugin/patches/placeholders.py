"""Placeholder weights, recognised by the function that made them.

vLLM's load format `dummy` fills a model with random numbers, which nothing about the numbers shows
later. So it is watched whether a loader is that one, or calls the function that it is made of.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from vllm.model_executor.model_loader import weight_utils
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

DUMMY = "dummy"
"""vLLM's load format of random weights: it takes every layer through the steps of loading."""
WHY = "the weights are placeholders"
REMEDY = "reload them from a source (collective_rpc('reload_weights')); then they are offered"
MAKERS = ("initialize_single_dummy_weight", "initialize_dummy_weights")
"""What loaders make placeholders with, from 0.23 to 0.33."""


class Watch:
    """Whether placeholders were made while it was `watching`."""

    def __init__(self) -> None:
        self.seen = False

    def noting(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """A function that makes placeholders, wrapped to note its calls."""

        @wraps(make)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.seen = True
            return make(*args, **kwargs)

        return noted


@contextmanager
def watching(loader: BaseModelLoader) -> Iterator[Watch]:
    """Watch a loader at work."""
    watch = Watch()
    watch.seen = isinstance(loader, DummyModelLoader)
    replaced: list[tuple[dict[str, Any], str, Any, Any]] = []
    for name in MAKERS:
        make = getattr(weight_utils, name, None)
        if make is None:
            continue
        noted = watch.noting(make)
        for module in list(sys.modules.values()):  # loaders import the function by its name
            names = getattr(module, "__dict__", {})
            if names.get(name) is make:
                names[name] = noted
                replaced.append((names, name, noted, make))
    try:
        yield watch
    finally:
        for names, name, noted, make in replaced:
            if names.get(name) is noted:
                names[name] = make
