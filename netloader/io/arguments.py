"""Checks of the arguments of `serve` and `fill`. Each error says what to give instead."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from netloader.config import Endpoint, check_type, shown
from netloader.fsm.identity import ROLE, Identity
from netloader.io import transports
from netloader.io.store.base import Store
from netloader.io.store.module import ModuleStore
from netloader.io.tensors import Named

Weights: TypeAlias = nn.Module | Mapping[str, Tensor] | Iterable[Named] | Store
"""What `serve` and `fill` take: a module, a state dict, pairs of names and tensors, or a store."""


def weights_of(model: object) -> Weights:
    """Something that can be served or filled; pairs as a list, because they are looked at again.

    Raises:
        TypeError: it is none of `Weights`.
        ValueError: a name is given twice.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, Store) and not isinstance(model, type):
        return model
    if isinstance(model, Mapping):
        named_in(model)
        return model
    if isinstance(model, Iterable) and not isinstance(model, str | bytes | Tensor | type):
        return named_in([*model])
    remedy = "give a torch.nn.Module, a state dict, named tensors or a Store"
    if isinstance(model, type) and issubclass(model, nn.Module):
        remedy = f"give an instance of {model.__name__}, not the class"
    raise TypeError(f"model is of type {type(model).__name__}; {remedy}")


def store_of(model: object) -> Store:
    """What is to be filled.

    Raises:
        TypeError, ValueError: as `weights_of`.
        WeightsError: some of it cannot travel.
    """
    weights = weights_of(model)
    if isinstance(weights, nn.Module):
        return ModuleStore.of(weights)
    return weights if isinstance(weights, Store) else ModuleStore(named_in(weights))


def named_in(weights: Mapping[str, Tensor] | Iterable[Named]) -> list[Named]:
    """The tensors of a state dict, or of pairs, in their order.

    Raises:
        TypeError: something is no pair, no name or no tensor.
        ValueError: a name is given twice.
    """
    pairs: list[Any] = [*(weights.items() if isinstance(weights, Mapping) else weights)]
    names = set[str]()
    for place, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            remedy = "give pairs of a name and a tensor"
            raise TypeError(f"model[{place}] is of type {type(pair).__name__}; {remedy}")
        name, tensor = pair
        check_type(f"a name in model, {shown(name)},", name, str, "give a text")
        remedy = "give tensors only, or the torch.nn.Module with all that it holds"
        check_type(f"model[{name!r}]", tensor, Tensor, remedy)
        if name in names:
            raise ValueError(f"model has {name!r} twice; give each tensor a name of its own")
        names.add(name)
    return [(name, tensor) for name, tensor in pairs]


def sources_of(sources: object) -> list[Endpoint]:
    """Where to ask, in order; a single source needs no list.

    Raises:
        TypeError: something is neither an Endpoint nor a text.
        ValueError: a text is not `host:port`.
    """
    if isinstance(sources, str | Endpoint):
        return [_endpoint("sources", sources)]
    remedy = "give a list of sources, each an Endpoint or a text host:port"
    if isinstance(sources, Mapping | bytes) or not hasattr(sources, "__iter__"):
        raise TypeError(f"sources is of type {type(sources).__name__}; {remedy}")
    items: Any = sources
    return [_endpoint(f"sources[{i}]", source) for i, source in enumerate(items)]


def _endpoint(name: str, source: object) -> Endpoint:
    if isinstance(source, str):
        return Endpoint.parse(source)
    check_type(name, source, Endpoint, "give an Endpoint or a text host:port")
    endpoint: Any = source
    return endpoint  # type: ignore[no-any-return]


def identity_of(identity: object) -> Identity:
    """What must be equal on both sides.

    Raises:
        TypeError: it is no Identity and no mapping of texts.
        ValueError: its role is empty.
    """
    known = identity if isinstance(identity, Identity) else None
    if known is None:
        known = Identity(texts_by_name("identity", identity, "{'model': 'demo'}"))
    if known.role is not None and not known.role.strip():
        raise ValueError(f"identity[{ROLE!r}] is empty; name a role, or leave the field out")
    return known


def texts_by_name(name: str, value: object, example: str) -> dict[str, str]:
    """A mapping of texts, such as `example`.

    Raises:
        TypeError: it is none; the field is named, its value is not shown.
    """
    if not isinstance(value, Mapping):
        remedy = f"give a mapping of texts such as {example}"
        raise TypeError(f"{name} is of type {type(value).__name__}; {remedy}")
    for key, item in value.items():
        check_type(f"a field name of {name}", key, str, f"use a text: '{shown(key)}'")
        check_type(f"{name}[{key!r}]", item, str, "give a text: str(value)")
    return {str(key): str(item) for key, item in value.items()}  # members of a StrEnum too


def check_transports(names: tuple[str, ...]) -> None:
    """Refuse names of transports that nothing has made known.

    Raises:
        ValueError: there is no transport of a name.
    """
    known = transports.known()
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(
                f"no transport is named {shown(name)}; {hint}there are {', '.join(known)}, and a "
                "third one's name is known after netloader.io.transports.register"
            )


def check_reason(role: str | None, why: str) -> None:
    """Check for which role something is offered no more, and why.

    Raises TypeError or ValueError.
    """
    check_type("role", role, str | None, "give the role of the model, or None if it has none")
    check_type("why", why, str, "give a sentence for clients")
    if not why.strip():
        raise ValueError("why is empty; give a sentence that tells clients the reason")
