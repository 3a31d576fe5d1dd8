"""Ask sources what they serve, before a model is built. Takes none of a server's places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from netloader.config import Deadlines, Endpoint, FolderEndpoint
from netloader.fsm.identity import PARTITION, Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description, Purpose
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import FetchSpec
from netloader.io.conversation import Conversation, converse, verdict_of
from netloader.io.dialing import Dialer
from netloader.io.observe import Observer
from netloader.io.options import ClientOptions
from netloader.io.outcome import Attempt, attempt_of
from netloader.io.stopping import Stop
from netloader.io.worker import IdleWorker

HASTY_S: Final = 1.5
"""How long a source may take to accept a connection while another peer is left to ask: a
millisecond within a data centre, a second more when a SYN is lost. If no other peer describes
itself, it is asked again, with its whole deadline, before a folder of this host, which would answer
at once and may be older."""


@dataclass(frozen=True, slots=True)
class Described:
    """What sources said before a model is built.

    `sources` is the order in which to try them: the one that described itself, the `untried`, those
    that did not answer well. `silent` are the attempts with those that let a whole deadline pass;
    give them to `fill` in `ClientOptions.silent`, so that none costs a second one.
    `untried` are peers not asked yet, those that did not accept within HASTY_S, then folders.

    `other_parts` are the attempts with those that have another part of the model, which are not
    among `sources`.
    """

    description: Description | None
    sources: tuple[Endpoint, ...]
    silent: tuple[Attempt, ...] = ()
    untried: tuple[Endpoint, ...] = ()
    other_parts: tuple[Attempt, ...] = ()


def describe(sources: Sequence[Endpoint], identity: Identity, options: ClientOptions) -> Described:
    """Ask sources what they resolved when they loaded the model, until one answers.

    They are asked in order, folders of this host after all peers. A source that sends us on to
    another port of its host is followed, once. Takes no place at the server. `identity` may name
    only what is known before a model is built.
    `options.cancel` and `options.timeout_s` are as in `fill`, for this call.
    """
    stop = Stop(options.cancel, options.timeout_s)
    spec = FetchSpec(purpose=Purpose.DESCRIBE, identity=identity)
    silent: list[Attempt] = []
    others: list[Attempt] = []
    folders: list[Endpoint] = [each for each in sources if isinstance(each, FolderEndpoint)]
    left = [each for each in sources if each not in folders]
    tried, slow = list[Endpoint](), list[Endpoint]()
    hasty = replace(options, deadlines=_hasty(options.deadlines))
    while queue := left or slow or folders:
        endpoint = queue.pop(0)
        hurried = bool(left)
        fields = {
            "netloader.source.attempt": len(tried) + len(others) + len(slow) + 1,
            "netloader.purpose": "describe",
        }
        said = _ask(endpoint, spec, hasty if hurried else options, stop, fields)
        if isinstance(said, Description):
            untried = (*left, *slow, *folders)
            order = (endpoint, *untried, *tried)
            return Described(said, order, tuple(silent), untried, tuple(others))
        if stop.request() is not None:  # which does not show that the source is silent
            break
        if said.differences and all(d.field in PARTITION for d in said.differences):
            others.append(said)
            continue
        if hurried and said.silent and said.reason is Reason.UNREACHABLE:
            slow.append(endpoint)
            continue
        tried.append(endpoint)
        silent += [said] if said.silent else []
        known = {*left, *tried}
        left[:0] = [e for e in said.elsewhere if endpoint in sources and e not in known]
    gone = {attempt.source for attempt in others}
    order = tuple(source for source in sources if source not in gone)
    return Described(None, order, tuple(silent), (), tuple(others))


def _hasty(deadlines: Deadlines) -> Deadlines:
    return replace(deadlines, connect_s=min(deadlines.connect_s, HASTY_S))


def ask_status(
    source: Endpoint, asked: Mapping[str, str], known: Manifest, options: ClientOptions
) -> Description | Attempt:
    """Ask a server what it does with one of its models: the first that has the fields `asked`.

    They are hard fields of an identity, such as the role; without any it is the server's first
    model. Takes no place at the server. The answer has a `status`, and the manifest unless that is
    `known`. An attempt says why there is no answer.
    """
    spec = FetchSpec(Purpose.STATUS, Identity(asked), known)
    stop = Stop(options.cancel, options.timeout_s)
    return _ask(source, spec, options, stop, {"netloader.purpose": "status"})


def _ask(
    endpoint: Endpoint,
    spec: FetchSpec,
    options: ClientOptions,
    stop: Stop,
    fields: Mapping[str, object],
) -> Description | Attempt:
    """One session that asks a question."""
    spec = replace(spec, token=options.token_for(endpoint))
    observer = Observer(options.logger, endpoint, fields)
    dialer = Dialer(endpoint, options.deadlines.connect_s, options.securing(endpoint))
    conversation = Conversation(dialer, spec, IdleWorker(), observer, options.deadlines)
    converse(conversation, stop)
    session = conversation.session
    verdict = verdict_of(session)
    if session.description is not None and verdict.state is State.DONE:
        return session.description
    attempt = attempt_of(endpoint, verdict, 0, observer.seconds)
    options.over(attempt)
    return attempt
