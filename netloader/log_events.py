"""The catalogue of log events: which there are, how grave each is, and what it means."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": 10, "info": 20, "warning": 30, "error": 40}
)


class EventSpec(NamedTuple):
    """One event: the severities it may have, the usual one first, and what it means."""

    levels: tuple[Level, ...]
    meaning: str


_info = partial(EventSpec, ("info",))
_info_or_debug = partial(EventSpec, ("info", "debug"))
_debug = partial(EventSpec, ("debug",))
_closing = partial(EventSpec, ("info", "warning", "debug"))
_warning = partial(EventSpec, ("warning",))
_warning_or_info = partial(EventSpec, ("warning", "info"))
_error = partial(EventSpec, ("error",))

EVENTS: Final[Mapping[str, EventSpec]] = MappingProxyType(
    {
        "netloader.plugin.registered": _info("The load format is known to vLLM."),
        "netloader.plugin.mixed": _warning("Another project's files lie among ours."),
        "netloader.config.loaded": _info("The settings in force, secrets left out."),
        "netloader.listener.started": _info("A server accepts clients at this address."),
        "netloader.listener.stopped": _info("The port is free again."),
        "netloader.listener.failed": _warning(
            "The port cannot be opened; the reason, and the process that has the port."
        ),
        "netloader.listener.exhausted": _warning("No connection can be accepted, and why."),
        "netloader.listener.refused": _warning(
            "Peers that may not connect, or that failed too often, were closed unread."
        ),
        "netloader.listener.insecure": _warning("Clients with which there is no TLS, and why."),
        "netloader.secret.reloaded": _info("A file of tokens or certificates was read again."),
        "netloader.secret.unreadable": _warning(
            "Such a file has changed and cannot be used; what it held before stays in force."
        ),
        "netloader.metrics.failed": _warning("The page of metrics cannot be opened, and why."),
        "netloader.instance.failed": _warning("Ranks of one host do not find each other, and why."),
        "netloader.address.unknown": _warning("No address of this host can be named to others."),
        "netloader.address_file.failed": _warning("The address file cannot be written."),
        "netloader.background.failed": _error("Background work ended early, and what follows."),
        "netloader.server.offered": _info("Weights are published, and what that costs."),
        "netloader.files.offered": _info_or_debug(
            "Files of the model's folder, or compiled code, are published: how many, their size, "
            "and which are left out (debug: none)."
        ),
        "netloader.caches.taken": _info("Files or a size that a source computed are used here."),
        "netloader.caches.refused": _warning(
            "What an engine computed is not taken over, or not offered, and why."
        ),
        "netloader.files.refused": _warning("Files of the model's folder are not served: why."),
        "netloader.server.refused": _warning("Weights are not served: why, and what would help."),
        "netloader.save.done": _info(
            "The weights are in a folder, verified: written now, or there already."
        ),
        "netloader.save.failed": _warning("Nothing was saved: why, and what would help."),
        "netloader.relay.failed": _warning("Weights are received, but not served meanwhile: why."),
        "netloader.server.withdrawn": _warning("The weights changed, so the offer ended."),
        "netloader.discovery.looked": _info_or_debug("Sources were looked up (debug: once more)."),
        "netloader.discovery.waiting": _info(
            "This rank waits for another instance that loads the model first."
        ),
        "netloader.discovery.failed": _warning("A place to look sources up gave no answer: why."),
        "netloader.discovery.odd": _warning("Entries that cannot be read are left out."),
        "netloader.publish.changed": _info("A registry names this server to clients, or no more."),
        "netloader.publish.failed": _warning("A registry cannot be told of this server: why."),
        "netloader.source.tried": _info("A client turns to a source."),
        "netloader.source.differs": _warning("A field in which a source is not this rank."),
        "netloader.source.answers_differ": _warning(
            "Same weights, but the source has other defaults or another handling of text."
        ),
        "netloader.source.spared": _info(
            "A peer is asked for nothing more: a folder of this host is as fast; both rates."
        ),
        "netloader.folder.refused": _warning_or_info(
            "A folder with weights is not used as a source, and why (info: nothing is there yet)."
        ),
        "netloader.source.odd": _warning("What a source says or sends does not fit this model."),
        "netloader.source.waiting": _info("The source is busy and will be asked again."),
        "netloader.session.opened": _info_or_debug(
            "A session begins (debug: a connection that came and went without a byte)."
        ),
        "netloader.session.transition": _info_or_debug("The state changed (debug: it stayed)."),
        "netloader.session.closed": _closing("The whole session in one line."),
        "netloader.peer.violation": _warning("The peer broke the protocol."),
        "netloader.transport.refused": _debug(
            "A transport of the offer cannot be opened, and why; the next one is tried."
        ),
        "netloader.transport.left_out": _warning("A faster transport cannot be used, and why."),
        "netloader.transfer.started": _info("Bytes begin to move."),
        "netloader.transfer.progress": _debug("The rate now, at most once a second for a side."),
        "netloader.transfer.finished": _info("All bytes of the session have moved."),
        "netloader.transfer.aborted": _warning("The transfer was stopped before its end."),
        "netloader.report.failed": _warning("A progress callback raised; the transfer goes on."),
        "netloader.loader.received": _info("The model was filled from a source."),
        "netloader.standby.waiting": _info("A rank on standby is ready except for its weights."),
        "netloader.standby.filled": _info("A rank on standby was filled in place."),
        "netloader.standby.failed": _warning(
            "A rank on standby was not filled, and why; it waits on."
        ),
        "netloader.standby.late": _error("vLLM's reload of a rank on standby does not end."),
        "netloader.standby.read": _info("A program filled a rank on standby from a checkpoint."),
        "netloader.loader.ordinary": _info("No source for this rank: ordinary loader."),
        "netloader.fallback.engaged": _warning("The ordinary loader takes over, and why."),
        "netloader.weights.doubted": _warning("A client got other bytes; the weights are checked."),
        "netloader.driver.error": _error("A bug of netloader itself, with its stack."),
    }
)
"""Every event that is logged. docs/operate/operations.md is generated from this table."""
