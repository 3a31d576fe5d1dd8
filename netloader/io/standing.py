"""What a session that begins now knows of the published models of its server."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from netloader.fsm.manifest import root_digest
from netloader.fsm.messages import Status
from netloader.fsm.terms import CatalogEntry, Sibling
from netloader.io.published import PublishedModel

MOST_PORTS = 256
"""Of other ranks that a status names: more than a host has accelerators."""


def entries_as_of_now(
    published_models: Sequence[PublishedModel], siblings: Iterable[Sibling] = ()
) -> tuple[CatalogEntry, ...]:
    """The entry of each model, with its status."""
    roles = tuple(published.entry.role or "" for published in published_models)
    kinds = tuple(published.entry.identity.kind for published in published_models)
    ports = tuple(sorted({sibling.port for sibling in siblings} - {0})[:MOST_PORTS])
    return tuple(
        replace(
            published.entry,
            status=replace(status_of(published, roles), ports=ports, kinds=kinds),
        )
        for published in published_models
    )


def status_of(published: PublishedModel, roles: tuple[str, ...]) -> Status:
    """What a client is told that asks; `roles` are those of all models of the server."""
    told, digests, there = published.snapshot(), published.digests(0) or (), published.available
    sealed = len(published.segments) if digests else 0
    return Status(
        state=told.state.value,
        roles=roles,
        nbytes=told.nbytes,
        clients=told.clients,
        max_clients=published.max_clients,
        sessions=told.sessions,
        sent_bytes=told.sent_bytes,
        segment_bytes=published.entry.segment_bytes,
        segments=len(published.segments),
        available=sealed if there is None else len(there),
        layouts=published.entry.layouts,
        transports=published.entry.transports,
        digest_algorithm=published.entry.digest_algorithms[0],
        root=root_digest(digests) if digests else "",
        withdrawn=told.withdrawn,
    )
