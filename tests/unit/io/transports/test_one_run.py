"""A transport that is not repeatable carries one request in a session."""

import queue
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from netloader.fsm.effects import OpenTransport, PrepareOffer, StartTransfer
from netloader.fsm.events import Event, OfferReady, TransferFailed, Transferred, TransportReady
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.client_worker import ClientWorker
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.ledger import Ledger
from netloader.io.store.module import ModuleStore
from netloader.io.transports import TRANSPORTS, Capabilities
from netloader.io.transports.tcp import Tcp
from netloader.io.worker import ServerWorker
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    MIB,
    SOON_S,
    asking,
    connected_pair,
    contents,
    module_of,
    offer_of,
    random,
    serving,
)

REFUSED = TransferFailed(Reason.TRANSFER_FAILED, "this transport carries one request in a session")


class Once(Tcp):
    """Tcp that says it carries one request."""

    name = "once"
    capabilities = Capabilities(repeatable=False)


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    with TRANSPORTS.registered(Once()):
        yield


def test_a_second_request_is_refused_at_both_ends() -> None:
    options = ServerOptions(deadlines=FAST, segment_bytes=64 * KIB)
    published = publish(ModuleStore.of(module_of(w=random(MIB))), Identity(IDENTITY), options)
    published.seal()
    server = ServerWorker((published,), "s" * 32, FAST)
    target = ModuleStore.of(module_of(w=random(MIB, seed=2)))

    def dial() -> socket.socket:
        near, far = connected_pair()
        server.attach(0, far)
        return near

    client = ClientWorker(Ledger(target, lambda done, total: None), 1, dial, SOON_S)
    said, heard = queue.SimpleQueue[Event](), queue.SimpleQueue[Event]()
    server.post, client.post = said.put, heard.put
    server.begin(PrepareOffer("once", "blake3", 0))
    offered = said.get(timeout=SOON_S)
    assert isinstance(offered, OfferReady)
    offer = offer_of(target.manifest, offered.segment_digests, 64 * KIB)
    client.begin(OpenTransport(replace(offer, transport="once")))
    assert heard.get(timeout=SOON_S) == TransportReady()

    for segments, answer in (((0, 2), Transferred(128 * KIB)), ((1,), REFUSED)):
        order = StartTransfer(segments, 1)
        server.begin(order)
        client.begin(order)
        assert said.get(timeout=SOON_S) == heard.get(timeout=SOON_S) == answer

    for worker in (client, server):
        worker.close()
        assert worker.join(SOON_S)


def test_a_model_is_filled_by_it() -> None:
    source, target = module_of(w=random(MIB)), module_of(w=random(MIB, seed=2))
    with serving(source, transports=("once",)) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking("once")).ok
    assert contents(target) == contents(source)
