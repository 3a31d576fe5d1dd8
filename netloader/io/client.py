"""Fill a model from its sources. All sessions share one ledger.

Sources are asked in order, `ClientOptions.parallel` at the same time. After a failure in the middle
another source is asked only for what is not verified yet. Sources that answered busy are asked
again until `Deadlines.queue_s` is over. A transport that cannot be opened costs nothing but the
time to find that out: the session goes on to the next one. One that was open, and failed before a
segment came, has ended its session: that source is dialled once more, for tcp, if it offers tcp
too. When no source is left the outcome is FALLBACK with the whole history.
"""

import threading
from collections.abc import Mapping, Sequence

from netloader.config import Endpoint, check_type
from netloader.errors import WeightsError
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Purpose
from netloader.fsm.terms import FetchSpec
from netloader.io.arguments import (
    Weights,
    check_transports,
    identity_of,
    sources_of,
    store_of,
    weights_of,
)
from netloader.io.filling import Filling
from netloader.io.metering import Meter
from netloader.io.options import ClientOptions
from netloader.io.outcome import Outcome
from netloader.io.relay import Relay
from netloader.io.stopping import Stop
from netloader.io.store.ledger import Ledger, Report
from netloader.io.transports import suited
from netloader.log import Logger, emit
from netloader.wire.frames import sendable


def fill(
    model: Weights,
    sources: Sequence[Endpoint | str] | Endpoint | str,
    identity: Mapping[str, str] | Identity,
    options: ClientOptions | None = None,
    *,
    resume: Outcome | None = None,
) -> Outcome:
    """Fill a model from the first source that delivers, or from several at once.

    `model` is a module, of which all is filled that it is seen to hold; a state dict, or pairs of
    names and tensors, whose tensors are filled in place and whose order is the server's; or a
    `Store`, such as `HostStore` and `FileStore`.

    Blocks; never longer than the deadlines of each phase for each source, plus `queue_s`, and never
    longer than `options.timeout_s`. `options.cancel` ends it from any other thread. `sources` are
    tried in order, `options.parallel` at the same time; a single one needs no list. `identity` must
    equal the server's field by field; its field `role` says which of the server's models is wanted
    (see `Role`).

    `resume` is what an earlier call returned for the same model, to ask only for what is missing.
    Segments that it calls verified are read from the model and hashed again, so those that have
    changed since are asked for as well. If the sources offer other weights, all is.

    Raises:
        TypeError: an argument is of a type that cannot be used; the message says what to give.
        ValueError: a source is not `host:port`, or no transport has a name in `transports`.
        WeightsError: the model has nothing to fill, or something that cannot travel, or a tensor in
            memory that cannot be written.
        UnsafeError: an aborted transfer did not end; the tensors must not be used.
    """
    return prepare(model, sources, identity, options, resume).run()


def prepare(
    model: Weights,
    sources: Sequence[Endpoint | str] | Endpoint | str,
    identity: Mapping[str, str] | Identity,
    options: ClientOptions | None,
    resume: Outcome | None,
) -> Filling:
    """Look at a model that is to be filled. Arguments are those of `fill`.

    Raises:
        TypeError, ValueError, WeightsError: as `fill`.
    """
    check_type("options", options, ClientOptions | None, "give a netloader.ClientOptions")
    options = options or ClientOptions()
    stop = Stop(options.cancel, options.timeout_s)
    endpoints = sources_of(sources)
    known = identity_of(identity)
    check_transports(options.transports)
    check_type("resume", resume, Outcome | None, "give what an earlier fill returned")
    given = weights_of(model)
    weights = store_of(given)
    if not weights.manifest.nbytes:
        raise WeightsError("the model has no bytes to fill")
    weights.check_writable()
    spec = FetchSpec(
        purpose=Purpose.WEIGHTS,
        identity=sendable(known),
        manifest=weights.manifest,
        layouts=options.layouts,
        transports=options.transports or suited(weights.device.type, options.logger),
        digest_algorithms=options.digest_algorithms(place.host for place in endpoints),
        lanes=options.lanes,
        serves_at="" if options.serves_at is None else str(options.serves_at),
    )
    _ = weights.manifest.digest  # made once, and not on the loop's thread
    relay = None
    if options.relay is not None:
        relay = Relay(options.relay, given, weights, spec.identity, options.logger)
    meter = Meter(options.logger, "client")
    report = meter.watching(harmless(options.report, options.logger))
    ledger = Ledger(weights, report, relay)
    return Filling(ledger, spec, options, stop, endpoints, resume, relay)


def harmless(report: Report, logger: Logger) -> Report:
    """A progress callback whose errors are ignored; the first one is logged, with its stack."""
    failed = threading.Event()

    def call(done: int, total: int) -> None:
        try:
            report(done, total)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it would end a lane only
            if not failed.is_set():
                failed.set()
                emit(logger, "netloader.report.failed", exc_info=error)

    return call
