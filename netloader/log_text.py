"""What an operator reads: one sentence for an event, made of the fields of its record.

A sentence says nothing that is not in the fields, apart from advice that follows from
the reason. An event without a sentence is for developers: its text is `event key=value ...`, and
it is shown at level debug only. The fields have been through `redact` before they come here.
"""

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from netloader.units import duration, rate, size

Fields: TypeAlias = Mapping[str, object]
Sentence: TypeAlias = Callable[[Fields], str | None]

_BARE = re.compile(r'[^\s"=]+')

ADVICE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unreachable": "check that the source runs and that this host can reach its port",
        "connection_lost": "look for the cause in the log of the other side",
        "deadline_passed": "look at the log of the other side, or raise the deadline that passed",
        "idle": "look at the log of the client",
        "protocol_violation": "check that both sides run netloader, and compare their versions",
        "unsupported_version": "run versions of netloader that share a protocol version",
        "auth_required": "give the client the AUTH_TOKEN_FILE of the server",
        "auth_failed": "give both sides the same token",
        "tls_required": "give the client the TLS_CERT, TLS_KEY and TLS_CA of its fleet",
        "identity_mismatch": "start both sides with the same model and settings",
        "manifest_mismatch": "start both sides with the same model and settings",
        "nothing_in_common": "allow a layout, transport and digest algorithm that both sides have",
        "not_serving": "look in the server's log for what ended its offer",
        "not_available": "check that both sides run netloader, and compare their versions",
        "digest_mismatch": "look in the server's log for what its check of the weights found",
        "unknown_session": "name the servers themselves in SOURCE, not a load balancer",
        "transfer_failed": "check the network between the two hosts",
        "transfer_stalled": "check the network between the two hosts",
        "disagreement": "look at the log of the other side",
    }
)
"""What would help, by the value of `netloader.reason`."""

_PASSING = ("busy", "not_ready", "referred")
"""Refusals that are no end: a client waits (`netloader.source.waiting`), or asks another port."""


def text_of(fields: Fields) -> str:
    """A record as `event key=value ...`."""
    pairs = (f"{key}={_word(value)}" for key, value in fields.items() if key != "event")
    return " ".join((str(fields["event"]), *pairs))


def _word(value: object) -> str:
    """One value of the text form, quoted when a reader could not tell where it ends."""
    if isinstance(value, str) and _BARE.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def sentence_of(fields: Fields) -> str | None:
    """The sentence about a record, with its event in brackets; None for developers' records.

    It begins with the rank where an instance has several.
    """
    event = str(fields["event"])
    make = SENTENCES.get(event)
    sentence = make(fields) if make else None
    if sentence is None or "netloader.own_folder" in fields:  # the client of it says the same
        return None
    several = _number(fields, "netloader.ranks") > 1
    rank = f"Rank {_text(fields, 'netloader.rank')}: " if several else ""
    return f"{rank}{sentence.rstrip('.')}. [{event}]"


# -- values ---------------------------------------------------------------------------------------


def _text(fields: Fields, key: str, otherwise: str = "?") -> str:
    return str(fields.get(key, otherwise))


def _number(fields: Fields, key: str) -> float:
    value = fields.get(key, 0)
    return value if isinstance(value, int | float) else 0


def _place(fields: Fields, end: str) -> str:
    """`host:port` of "peer" or "local", or the folder that is the peer."""
    host, port = (_text(fields, f"network.{end}.{part}") for part in ("address", "port"))
    return _text(fields, "netloader.folder", f"{f'[{host}]' if ':' in host else host}:{port}")


def _in_brackets(text: str) -> str:
    return f" ({text.rstrip('.')})" if text else ""


def _detail(fields: Fields) -> str:
    return _text(fields, "netloader.detail", "").rstrip(".")


def _then(advice: str) -> str:
    """A further clause; none for no advice."""
    return f"; {advice}" if advice else ""


def _remedy(fields: Fields) -> str:
    return _then(_text(fields, "netloader.remedy", ""))


# -- sentences ------------------------------------------------------------------------------------


def _telling(text: str) -> Sentence:
    """`text`, then the detail and what would help."""

    def sentence(fields: Fields) -> str:
        detail = _detail(fields)
        return f"{text}{': ' if detail else ''}{detail}{_remedy(fields)}"

    return sentence


def _registered(fields: Fields) -> str | None:
    if "netloader.replaces" in fields:
        return f"netloader takes the place of the loader of {_text(fields, 'netloader.replaces')}"
    return _detail(fields) or None


def _port_failed(fields: Fields) -> str:
    holder = fields.get("netloader.holder")
    why = f"{_detail(fields)}{f'; in use by {holder}' if holder else ''}"
    port = _place(fields, "local")
    return f"This rank does not serve: {port} cannot be opened{_in_brackets(why)}{_remedy(fields)}"


def _no_metrics(fields: Fields) -> str:
    why = _in_brackets(_detail(fields))
    return f"No metrics are served at {_place(fields, 'local')}{why}{_remedy(fields)}"


def _exhausted(fields: Fields) -> str:
    already = f"{_number(fields, 'netloader.connections'):.0f} are open"
    return f"No connection can be accepted ({_detail(fields)}; {already}){_remedy(fields)}"


def _peers_refused(fields: Fields) -> str:
    peer = _place(fields, "peer")
    return f"Connection from {peer} is closed{_more(fields)}: {_detail(fields)}{_remedy(fields)}"


def _more(fields: Fields) -> str:
    """How many other peers a record stands for."""
    more = _number(fields, "netloader.connections") - 1
    return f" ({more:.0f} more since the last such line)" if more else ""


def _insecure(fields: Fields) -> str:
    peer = _place(fields, "peer")
    return f"No TLS with client {peer}{_more(fields)}: {_detail(fields)}{_remedy(fields)}"


def _unreadable(fields: Fields) -> str:
    files = _text(fields, "netloader.files")
    return f"{files} cannot be used, so what was read before stays in force: {_detail(fields)}"


def _offered(fields: Fields) -> str:
    role = _text(fields, "netloader.role", "target")
    what = "" if role == "target" else f" of the {role} model"
    kept = _number(fields, "netloader.cached_bytes")
    where = _text(fields, "netloader.cached_in")
    cost = f"; {size(kept)} of original weights are kept in {where} for that" if kept else ""
    raw = size(_number(fields, "netloader.raw_bytes"))
    layout = _text(fields, "netloader.layout")
    return f"Serving {raw}{what} ({layout} layout) at {_text(fields, 'netloader.endpoint')}{cost}"


def _files(fields: Fields) -> str:
    count, nbytes = (_number(fields, f"netloader.files.{name}") for name in ("count", "bytes"))
    without = _text(fields, "netloader.files.left_out", "")
    but = f"; not among them: {without}" if without else ""
    of = _text(fields, "netloader.files.of")
    return f"Serving {count:.0f} files of {of}, {size(nbytes)}{but}"


def _withdrawn(fields: Fields) -> str:
    again = "clients are refused as `not_serving` until the weights are served again"
    return f"Weights are no longer served: {_detail(fields)}; {again}{_remedy(fields)}"


def _looked(fields: Fields) -> str:
    finder, found = _text(fields, "netloader.finder"), _number(fields, "netloader.found")
    open_ = _text(fields, "netloader.sources", "")
    then = f"to be asked: {open_}" if open_ else "none of them accepts a connection"
    return f"Sources at {finder}: {f'{found:.0f}; {then}' if found else 'none yet'}"


def _waiting_for_first(fields: Fields) -> str:
    left = f"waiting until it serves, {_detail(fields)} at the longest"
    return f"Instance {_text(fields, 'netloader.finder')} loads this model; {left}"


def _looking(what: str) -> Sentence:
    def sentence(fields: Fields) -> str:
        where = _text(fields, "netloader.finder")
        return (
            f"The place where sources are looked up {what}: {where}{_in_brackets(_detail(fields))}"
        )

    return sentence


def _published(fields: Fields) -> str:
    endpoint, finder = _text(fields, "netloader.endpoint"), _text(fields, "netloader.finder")
    return f"This rank, {endpoint}, {_detail(fields)} at {finder}"


def _unpublished(fields: Fields) -> str:
    finder = _text(fields, "netloader.finder")
    return f"This rank cannot be published at {finder}{_in_brackets(_detail(fields))}; tried again"


def _differing(what: str) -> Sentence:
    def sentence(fields: Fields) -> str:
        source, field, mine, theirs, help_ = (
            _text(fields, f"netloader.{name}")
            for name in ("source", "field", "mine", "theirs", "what_to_do")
        )
        return f"Source {source} {what} {field}: {mine} here, {theirs} there; {help_}"

    return sentence


def _waiting(fields: Fields) -> str | None:
    if _number(fields, "netloader.wait_count") != 1:
        return None  # the same sentence every second would flood the log
    patience = duration(_number(fields, "netloader.patience_s"))
    then = f"asked again for up to {patience}"
    return f"{_text(fields, 'netloader.sources')}: busy or not ready; {then}"


def _closed(fields: Fields) -> str | None:
    side, reason = _text(fields, "netloader.side"), _text(fields, "netloader.reason")
    if _text(fields, "netloader.outcome") == "done":
        return _moved(fields) if reason == "verified" else None
    ours = reason == "protocol_violation" and not fields.get("netloader.by_peer")
    if reason in _PASSING or ours:
        return None
    if side == "client":
        describe = fields.get("netloader.purpose") in ("describe", "status")
        whom, what = "Source", "does not say what it serves" if describe else "delivers no weights"
    else:
        whom, what = "Client", "got no weights"
    done = _number(fields, "netloader.transfer.bytes")
    after = f" after {size(done)}" if done else ""
    said = _in_brackets(_detail(fields))
    unlike = [str(fields[key]) for key in fields if key.startswith("netloader.difference.")]
    why = f"{reason}{after}{said}{''.join(map(_then, unlike))}"
    return f"{whom} {_place(fields, 'peer')} {what}: {why}{_then(ADVICE.get(reason, ''))}"


def _moved(fields: Fields) -> str:
    moved = size(_number(fields, "netloader.transfer.bytes"))
    took = duration(_number(fields, "netloader.transfer.duration_s"))
    fast = rate(_number(fields, "netloader.transfer.throughput_bytes_per_s"))
    did, way = ("Loaded", "from") if fields.get("netloader.side") == "client" else ("Sent", "to")
    of = f" of {fields['netloader.contents']}" if "netloader.contents" in fields else ""
    algorithm = _text(fields, "netloader.digest_algorithm", "")
    by = f" with {algorithm}" if algorithm else ""
    attempt = _number(fields, "netloader.source.attempt")
    which = f" (attempt {attempt:.0f})" if attempt > 1 else ""
    return (
        f"{did} {moved}{of} {way} {_place(fields, 'peer')}{which} in {took} ({fast}), verified{by}"
    )


def _violation(fields: Fields) -> str:
    side = "Source" if fields.get("netloader.side") == "client" else "Client"
    advice = ADVICE["protocol_violation"]
    return f"{side} {_place(fields, 'peer')} broke the protocol: {_detail(fields)}; {advice}"


def _left_out(fields: Fields) -> str:
    name = _text(fields, "netloader.transport")
    return f"Transport {name} is left out{_in_brackets(_detail(fields))}; the others are used"


def _next(fields: Fields) -> str:
    """What follows when no source has delivered."""
    loader = _text(fields, "netloader.fallback")
    if loader == "never":
        return "FALLBACK is never, so this load fails"
    return f"loading with vLLM's loader ({loader}) instead"


def _ordinary(fields: Fields) -> str:
    return f"No source is named for this rank, or none fits; {_next(fields)}"


def _filled(fields: Fields) -> str:
    moved = size(_number(fields, "netloader.transfer.bytes"))
    took = duration(_number(fields, "netloader.duration_s"))
    return f"Filled in place in {took}: {moved}, verified; this rank may answer"


def _fallback(fields: Fields) -> str:
    overwritten = (
        "; what has arrived is overwritten" if fields.get("netloader.weights_dirty") else ""
    )
    why = _detail(fields)
    return f"No weights from a source: {why}; {_next(fields)}{overwritten}"


def _doubted(fields: Fields) -> str:
    got = f"Client {_place(fields, 'peer')} got other bytes than those published"
    return f"{got}; the weights here are being checked"


def _spared(fields: Fields) -> str:
    own, peer = (rate(_number(fields, f"netloader.{who}_rate")) for who in ("own", "peer"))
    source = _text(fields, "netloader.source")
    return f"A folder of this host brings {own}, {source} {peer}: that peer is left to others"


def _saved(fields: Fields) -> str:
    folder, nbytes = _text(fields, "netloader.folder"), _number(fields, "netloader.saved_bytes")
    took, left = duration(_number(fields, "netloader.duration_s")), _in_brackets(_detail(fields))
    if not nbytes:
        return f"The weights lie in {folder} already{left}"
    return f"Saved {size(nbytes)} to {folder} in {took}, verified{left}"


def _background(f: Fields) -> str:
    return f"Background work {_text(f, 'netloader.work')} ended early{_in_brackets(_detail(f))}"


SENTENCES: Final[Mapping[str, Sentence]] = MappingProxyType(
    {
        "netloader.plugin.registered": _registered,
        "netloader.plugin.mixed": _telling("netloader's files are mixed with others"),
        "netloader.listener.started": lambda f: f"Listening for clients at {_place(f, 'local')}",
        "netloader.listener.stopped": lambda f: f"Stopped listening at {_place(f, 'local')}",
        "netloader.listener.failed": _port_failed,
        "netloader.listener.exhausted": _exhausted,
        "netloader.listener.refused": _peers_refused,
        "netloader.listener.insecure": _insecure,
        "netloader.secret.reloaded": lambda f: f"Read again: {_text(f, 'netloader.files')}",
        "netloader.secret.unreadable": _unreadable,
        "netloader.metrics.failed": _no_metrics,
        "netloader.instance.failed": _telling("The ranks of this host do not find each other"),
        "netloader.address.unknown": _telling("No address can be named to clients"),
        "netloader.address_file.failed": _telling("The address file cannot be written"),
        "netloader.background.failed": _background,
        "netloader.server.offered": _offered,
        "netloader.files.offered": _files,
        "netloader.files.refused": _telling("No empty folder can start an instance from here"),
        "netloader.caches.taken": _telling("Taken over from a source"),
        "netloader.caches.refused": _telling("Computed anew, not taken over"),
        "netloader.server.refused": _telling("This rank does not serve its weights"),
        "netloader.relay.failed": _telling("What is received is not served meanwhile"),
        "netloader.server.withdrawn": _withdrawn,
        "netloader.discovery.looked": _looked,
        "netloader.discovery.waiting": _waiting_for_first,
        "netloader.discovery.failed": _looking("gave no answer"),
        "netloader.discovery.odd": _looking("holds something else"),
        "netloader.publish.changed": _published,
        "netloader.publish.failed": _unpublished,
        "netloader.source.differs": _differing("differs in"),
        "netloader.source.answers_differ": _differing(
            "has the same weights, but may answer otherwise because of"
        ),
        "netloader.source.spared": _spared,
        "netloader.folder.refused": _telling("A folder is not used as a source"),
        "netloader.save.done": _saved,
        "netloader.save.failed": _telling("What was loaded is not saved"),
        "netloader.source.odd": _telling("What a source sent does not fit this model"),
        "netloader.source.waiting": _waiting,
        "netloader.session.closed": _closed,
        "netloader.peer.violation": _violation,
        "netloader.transport.left_out": _left_out,
        "netloader.report.failed": _telling("A progress callback raised; the transfer goes on"),
        "netloader.standby.waiting": lambda _: (
            "On standby: all but the weights is there. Fill this instance with `netloader fill`"
        ),
        "netloader.standby.filled": _filled,
        "netloader.standby.failed": _telling("Not filled; this rank stays on standby"),
        "netloader.standby.late": _telling("This rank hangs while it is filled"),
        "netloader.standby.read": lambda _: (
            "Filled from a checkpoint by a program; this rank may answer, and is no source"
        ),
        "netloader.loader.ordinary": _ordinary,
        "netloader.fallback.engaged": _fallback,
        "netloader.weights.doubted": _doubted,
        "netloader.driver.error": _telling("netloader met an error that it did not expect"),
    }
)
"""The events that an operator reads about; of some, only those records that a function words."""
