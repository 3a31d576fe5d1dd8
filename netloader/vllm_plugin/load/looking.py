"""Look up the sources of one model, where the operator does not name them by address."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from netloader.config import Endpoint
from netloader.discovery.base import Key
from netloader.discovery.lookup import Looked, Lookup
from netloader.discovery.names import Address
from netloader.discovery.urls import registry_of
from netloader.fsm.canonical import canonical
from netloader.fsm.reasons import Reason
from netloader.io.host import boot_id
from netloader.io.outcome import Attempt
from netloader.log import Logger
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.config.sources import finders_of
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.serve.announcing import Place
from netloader.vllm_plugin.serve.worker import this_worker

NAMED = 8
"""Sources without a connection that the history of a load names."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of one model: those of now, and what names more of them while a fetch runs."""

    now: tuple[Endpoint, ...]
    lookup: Lookup | None = None
    unreachable: tuple[Attempt, ...] = ()
    """Sources that were found, where none accepts a connection."""
    unfound: str = ""
    """Why a finder gave no answer."""


def place_of(model: LocalModel, settings: Settings) -> Place | None:
    """Where a registry is to name this rank once it serves the model."""
    registry = settings.registry
    return None if registry is None else Place(registry_of(registry.text.reveal()), key_of(model))


def look(model: LocalModel, settings: Settings, logger: Logger) -> Sources:
    """The sources of a model. Blocks for DISCOVERY_TIMEOUT_S and a second; never raises."""
    finders = finders_of(settings.sources, model.rank)
    written = [finder.endpoint for finder in finders if isinstance(finder, Address)]
    if len(written) == len(finders):
        return Sources(tuple(written))
    given = (key_of(model), boot_id(), settings.discovery_timeout_s, logger)
    lookup = Lookup(finders, *given, own=lambda: frozenset(_own_places()))
    looked = lookup.look()
    return Sources(looked.sources, lookup, _attempts(looked), "; ".join(looked.problems))


def key_of(model: LocalModel) -> Key:
    """What a server is looked up by: the fields that say which part of which model a rank has.

    Those of the config and of files are left to the comparison with the source, which names the
    field that differs.
    """
    plain = {name: value for name, value in model.early.hard.items() if "." not in name}
    digest = hashlib.sha256(canonical(plain)).hexdigest()[:16]
    return Key(model.early.hard["model"], digest)


def _own_places() -> Iterator[Endpoint]:
    """Where this worker serves itself."""
    for server in this_worker().servers:
        if server.port.told:
            yield Endpoint.parse(server.port.told)


def _attempts(looked: Looked) -> tuple[Attempt, ...]:
    why = "found, but it accepts no connection"
    return tuple(
        Attempt(place, Reason.UNREACHABLE, why, 0, {}) for place in looked.unreachable[:NAMED]
    )
