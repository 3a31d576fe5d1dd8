"""What a rank serves of one model while it receives it.

It ends before vLLM post-processes the model. Until the result is offered, clients are told to come
again.
"""

from collections.abc import Mapping
from dataclasses import replace

from netloader.config import Endpoint
from netloader.errors import LocalProtocolError
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Offer
from netloader.fsm.reasons import Reason
from netloader.io.arguments import Weights
from netloader.io.published import PublishedModel
from netloader.io.publishing import publish_received
from netloader.io.store.base import Store
from netloader.io.store.module import ModuleStore
from netloader.log import emit
from netloader.vllm_plugin.config.settings import RELAYED_OVER
from netloader.vllm_plugin.serve.live_model import EVICT_S, Rank

COME_AGAIN = "the weights are being made ready here; they are served again afterwards"


class RankRelay:
    """One model that is received, in the server of its rank: a `RelayHost`.

    Safe to use from any thread.
    """

    def __init__(self, endpoint: Endpoint, facts: Mapping[str, str], rank: Rank) -> None:
        self.endpoint = endpoint
        self.told = rank.port.told
        """What other hosts connect to; empty where this host has no such address."""
        self._facts = facts
        self._rank = rank
        self._published: PublishedModel | None = None
        self._store: ModuleStore | None = None
        self._over = False

    def receive(self, store: Store, identity: Identity, offer: Offer) -> PublishedModel:
        """Publish tensors that segments of an offer are written to; as `RelayHost.receive`.

        Raises:
            LocalProtocolError: this relay has ended, or the port cannot be had.
            ValueError: the store is not of tensors.
        """
        if not isinstance(store, ModuleStore):
            raise ValueError("a rank relays tensors, and no other store")  # noqa: TRY004 - as above
        options = replace(self._rank.options, facts=self._facts, transports=RELAYED_OVER)
        published = publish_received(store, identity, offer, options)
        with self._rank.lock:
            if self._over or not self._rank.port.offer(published):
                raise LocalProtocolError("the relay of this rank has ended, or has no port")
            self._published, self._store = published, store
        return published

    @property
    def published(self) -> PublishedModel | None:
        """What is served of the model by now; None before the first segment."""
        return self._published

    def received(self, published: PublishedModel, weights: Weights, identity: Identity) -> None:
        """Go on until `end`: all segments are there, and nothing changes them before."""

    def end(self) -> None:
        """Have clients come again later, wait until none of them reads, and keep no tensor.

        Idempotent. Blocks for the stall deadline and `EVICT_S` at most: a client that reads longer
        than that fails.
        """
        with self._rank.lock:
            self._over = True
            published, store = self._published, self._store
            self._store = None
        if published is None or store is None:
            return
        published.retire(COME_AGAIN, Reason.NOT_READY)
        timeout_s = self._rank.options.deadlines.stall_s + EVICT_S
        if not published.quiet(timeout_s):
            detail = f"clients still read {timeout_s:g} s after: {COME_AGAIN}"
            emit(self._rank.logger, "netloader.driver.error", {"netloader.detail": detail})
        store.give_up()

    def forget(self) -> None:
        """Nothing follows: have clients of this model told that it is not here."""
        if self._published is not None:
            self._rank.port.remove(self._published)
