"""Look up the sources of one model, where the operator does not name them by address."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from netloader.config import Endpoint
from netloader.discovery.base import Finder
from netloader.discovery.claim import wait_for_first
from netloader.discovery.keys import instance_key_of, key_of
from netloader.discovery.lookup import Looked, Lookup
from netloader.discovery.names import Address
from netloader.discovery.urls import registry_of
from netloader.fsm.reasons import Reason
from netloader.io.failed_sources import failed_last
from netloader.io.host import boot_id
from netloader.io.outcome import Attempt
from netloader.io.own_folder import OwnFolder
from netloader.log import Logger
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.config.sources import finders_of
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.load import agree
from netloader.vllm_plugin.load.folders import Folders, open_folders
from netloader.vllm_plugin.serve import address
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
    place: Place | None = None
    """Where a registry is to name this rank once it serves the model."""
    folders: tuple[OwnFolder, ...] = ()
    """Those of this host that are among `now`, the last ones."""


def look(model: LocalModel, settings: Settings, logger: Logger, *, serves: bool) -> Sources:
    """The sources of a model, which this rank is to serve itself, or not; never raises.

    Blocks for DISCOVERY_TIMEOUT_S and a second, and where another instance loads the model, until
    it serves, FIRST_TIMEOUT_S at the longest; one on standby looks once, and waits after its start.
    """
    folders = open_folders(finders_of(settings.sources, model.rank), model, settings, logger)
    peers = _peers(folders, model, settings, logger, _place_of(model, settings) if serves else None)
    own = tuple(folder.endpoint for folder in folders.served)
    unfound = "; ".join(filter(None, (peers.unfound, *folders.problems)))
    return replace(peers, now=(*peers.now, *own), unfound=unfound, folders=folders.served)


def _peers(
    folders: Folders, model: LocalModel, settings: Settings, logger: Logger, place: Place | None
) -> Sources:
    """The sources that are other processes."""
    finders = folders.finders
    written = [finder.endpoint for finder in finders if isinstance(finder, Address)]
    instance = frozenset(_own_instance(settings))
    if len(written) == len(finders):
        return Sources(failed_last(p for p in written if p not in instance), place=place)
    lookup = lookup_of(finders, model, settings, logger)
    looked = lookup.look()
    loads = settings.fallback is not None and not settings.standby  # by itself, as the first one
    alone = loads and not (looked.sources or looked.problems or folders.served)
    if place is not None and alone and place.registry.name in {f.name for f in finders}:
        claimed = (place.registry, instance_key_of(model.early), _instance())
        given_up = (settings.first_timeout_s, logger)
        looked, claim = wait_for_first(lookup.look, *claimed, *given_up)
        place = replace(place, claim=claim)
    problems = "; ".join(looked.problems)
    return Sources(looked.sources, lookup, _attempts(looked), problems, place)


def lookup_of(
    finders: Sequence[Finder], model: LocalModel, settings: Settings, logger: Logger
) -> Lookup:
    """What asks some finders for sources of a model that are not its own instance."""
    given = (key_of(model.early), boot_id(), settings.discovery_timeout_s, logger)
    instance = frozenset(_own_instance(settings))
    return Lookup(finders, *given, own=_own_or(instance), ordered=failed_last)


def _place_of(model: LocalModel, settings: Settings) -> Place | None:
    registry = settings.registry
    if registry is None:
        return None
    return Place(registry_of(registry.text.reveal()), key_of(model.early))


def _instance() -> str:
    """A name that all ranks of this instance have in common, and no other instance has."""
    mine = f"{socket.gethostname()[:40]}:{os.getpid()}:{os.urandom(4).hex()}"
    return agree.first_said("instance", mine)


def _own_instance(settings: Settings) -> Iterator[Endpoint]:
    """Where the instance of this rank is found: it has no weights for its own ranks."""
    if settings.listen_port:
        for host in address.of_this_host(settings.listen_host):
            yield Endpoint(host, settings.listen_port)


def _own_or(instance: frozenset[Endpoint]) -> Callable[[], frozenset[Endpoint]]:
    return lambda: instance.union(_own_places())


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
