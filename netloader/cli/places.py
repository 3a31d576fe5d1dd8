"""Where servers are, as a command line names them: host and port, or where they are looked up."""

from collections.abc import Iterable
from typing import Final

from netloader.cli.answers import CommandError
from netloader.cli.codes import Code
from netloader.config import Endpoint
from netloader.discovery.base import DiscoveryError, Finder, Found, Key
from netloader.discovery.files import Files
from netloader.discovery.urls import finder_of, is_looked_up, is_registry, registry_of
from netloader.errors import cause
from netloader.io.options import ClientOptions

ANY: Final = Key("", "")
"""For finders that do not know which model a server has."""
WAIT_S: Final = 10.0


def places_of(texts: Iterable[str], options: ClientOptions) -> tuple[Endpoint, ...]:
    """The servers that these texts name now, each once, in order. Blocks for each look-up.

    A registry is asked for the servers of all models. Of other kinds the ports of rank 0 are meant.

    Raises:
        CommandError: a text cannot be used, or a look-up fails or finds no server.
    """
    timeout_s = options.timeout_s or WAIT_S
    found = [place for text in texts for place in _places(text, timeout_s)]
    return tuple(dict.fromkeys(found))


def _places(text: str, timeout_s: float) -> tuple[Endpoint, ...]:
    name = text
    try:
        if is_registry(text):
            registry = registry_of(text)
            name = registry.name
            found = registry.every(timeout_s)
        else:
            finder = finder_of(text, 0)
            name = finder.name
            _refuse_folders(finder)
            found = finder.find(ANY, timeout_s)
    except ValueError as error:
        raise CommandError(Code.USAGE, f"not a server: {error}") from error
    except (DiscoveryError, OSError) as error:
        problem = f"{name} cannot be looked up: {cause(error)}"
        raise CommandError(Code.UNREACHABLE, problem) from error
    return _named(text, name, found)


def _refuse_folders(finder: Finder) -> None:
    """Weights in a folder are a source for vLLM's ranks, and no server that could be asked."""
    for folder in finder.folders() if isinstance(finder, Files) else ():
        remedy = f"serve it with `netloader serve {folder}`, and give the address that it shows"
        raise CommandError(Code.USAGE, f"{finder.name}: {folder} is a folder of weights; {remedy}")


def _named(text: str, name: str, found: Found) -> tuple[Endpoint, ...]:
    """The servers; a name of one address stays the name, which is what a certificate has."""
    places = tuple(candidate.endpoint for candidate in found.candidates)
    if not places:
        raise CommandError(Code.UNREACHABLE, f"{name} names no server now")
    if len(places) == 1 and not is_looked_up(text):
        return (Endpoint.parse(text),)
    return places
