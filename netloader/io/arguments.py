"""Arguments of `serve` and `fill`, checked where they come in. Law: an error says what to give."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from netloader.config import Endpoint, check_type, shown
from netloader.fsm.identity import ROLE, Identity
from netloader.io import transports
from netloader.io.store.module import ModuleStore


def module_of(model: object) -> nn.Module:
    """A model that can be served.

    Raises:
        TypeError: it is none.
    """
    check_type("model", model, nn.Module, _module_remedy(model))
    module: Any = model
    return module  # type: ignore[no-any-return]


def weights_of(model: nn.Module | ModuleStore) -> ModuleStore:
    """All that a model is seen to hold.

    Raises:
        TypeError: it is no model.
        WeightsError: some of it cannot travel.
    """
    return model if isinstance(model, ModuleStore) else ModuleStore.of(module_of(model))


def _module_remedy(model: object) -> str:
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"give an instance of {model.__name__}, not the class"
    if isinstance(model, Mapping):
        return "give the torch.nn.Module itself, not its state_dict()"
    return "give a torch.nn.Module"


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
