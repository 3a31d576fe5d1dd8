"""Ask sources what they serve, before a model is built. Takes none of a server's places."""

from collections.abc import Sequence
from dataclasses import dataclass

from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Description, Purpose
from netloader.fsm.states import State
from netloader.fsm.terms import FetchSpec
from netloader.io.conversation import Conversation, converse, verdict_of
from netloader.io.dialing import Dialer
from netloader.io.observe import Observer
from netloader.io.options import ClientOptions
from netloader.io.outcome import Attempt, attempt_of
from netloader.io.stopping import Stop
from netloader.io.worker import IdleWorker


@dataclass(frozen=True, slots=True)
class Described:
    """What sources said before a model is built.

    `sources` is the order in which to try them: the one that described itself, those not asked
    yet, those that did not answer well. `silent` are the attempts with those that let a deadline
    pass; give them to `fill` in `ClientOptions.silent`, so that none costs a second one.
    """

    description: Description | None
    sources: tuple[Endpoint, ...]
    silent: tuple[Attempt, ...] = ()


def describe(sources: Sequence[Endpoint], identity: Identity, options: ClientOptions) -> Described:
    """Ask sources, in order, what they resolved when they loaded the model, until one answers.

    Takes no place at the server. `identity` may name only what is known before a model is built.
    `options.cancel` and `options.timeout_s` are as in `fill`, for this call.
    """
    stop = Stop(options.cancel, options.timeout_s)
    spec = FetchSpec(purpose=Purpose.DESCRIBE, identity=identity, token=options.first_token)
    silent: list[Attempt] = []
    for number, endpoint in enumerate(sources):
        fields = {"netloader.source.attempt": number + 1, "netloader.purpose": "describe"}
        observer = Observer(options.logger, endpoint, fields)
        dialer = Dialer(endpoint, options.deadlines.connect_s)
        conversation = Conversation(dialer, spec, IdleWorker(), observer, options.deadlines)
        converse(conversation, stop)
        session = conversation.session
        verdict = verdict_of(session)
        if session.description is not None and verdict.state is State.DONE:
            tried, untried = sources[:number], sources[number + 1 :]
            return Described(session.description, (endpoint, *untried, *tried), tuple(silent))
        if stop.request() is not None:  # which does not show that the source is silent
            break
        attempt = attempt_of(endpoint, verdict, 0, observer.seconds)
        silent += [attempt] if attempt.silent else []
    return Described(None, tuple(sources), tuple(silent))
