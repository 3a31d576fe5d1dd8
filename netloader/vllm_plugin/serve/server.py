"""Serve what this rank has loaded; no error here reaches the engine.

A rank has one `netloader.Server`, at one address, for the weights of the target and of the draft.
"""

import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from netloader.discovery.base import Candidate
from netloader.files.folder import FolderFiles
from netloader.files.hints import KvSize
from netloader.fsm.identity import Identity
from netloader.io.background import in_background
from netloader.io.forks import only_here
from netloader.io.publishing import ServerOptions
from netloader.log import get_logger
from netloader.vllm_plugin.identity import ranks
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.serve.announcing import Announcements, Place
from netloader.vllm_plugin.serve.known import Known
from netloader.vllm_plugin.serve.live_model import LiveModel, Rank
from netloader.vllm_plugin.serve.port import PortChoice, RankPort
from netloader.vllm_plugin.serve.relay import RankRelay
from netloader.vllm_plugin.serve.saving import Saving
from netloader.vllm_plugin.serve.served_model import ServedModel


class RankServer:
    """The models that a rank serves at one port. Safe to use from any thread."""

    def __init__(self, rank: int, choice: PortChoice, options: ServerOptions) -> None:
        logger = get_logger("server", LOG_BASE, **ranks.named(rank))
        self._announcements = Announcements(options.max_clients, logger)
        options = replace(options, logger=logger, on_session=self._announcements.note)
        self.rank = rank
        self.logger = logger
        self.port = RankPort(choice, options)
        self._rank = Rank(rank, self.port, options, logger)
        self._live: dict[str, LiveModel] = {}
        self._expected: set[str] = set()
        """Of models that are being loaded."""
        self._relays: dict[str, RankRelay] = {}
        """Of models that are being received, or loaded, and are not served in full yet."""

    @property
    def roles(self) -> tuple[str, ...]:
        """What is served, or would be if it were not being changed."""
        return tuple(self._live)

    @property
    def in_use(self) -> bool:
        """Whether anything is served, or is to be when it is received."""
        return bool(self._live or self._relays or self._expected)

    @property
    def models(self) -> tuple[LiveModel, ...]:
        """The models of these roles."""
        return tuple(self._live.values())

    def expect(self, identity: Identity) -> None:
        """A model is going to be loaded: until it is opened or abandoned, its clients are told."""
        with self._rank.guarded(), self._rank.lock:
            self._expected.add(str(identity.role))
            self.port.expect(identity)

    def open(self, served: ServedModel, model: nn.Module) -> bool:
        """Serve some weights until their model is gone.

        Returns:
            False when that cannot be done; the log says why. If only the port could not be had, it
            is tried again after the next change of the weights.
        """
        opened = False
        with self._rank.guarded():
            live = LiveModel(model, served, self._rank)
            with self._rank.lock:
                self._live[served.role] = live
                weakref.finalize(model, only_here(self._gone), live)
                opened = live.offer(live.published)
                self._relays.pop(served.role, None)
                self._expected.discard(served.role)
        if opened and served.folder is not None:
            self._offer(served.folder)
        self.abandon(served.role)
        return opened

    def _offer(self, folder: FolderFiles) -> None:
        """Offer the files of the model's folder as well, as long as the port is open."""
        with self._rank.guarded():
            published = folder.publish(self._rank.options)
            with self._rank.lock:
                offered = self.port.offer(published)
        if offered:
            folder.tell(self._rank.logger)

    def offer_known(self, known: Known, kv: KvSize | None) -> None:
        """Offer in the background what this rank knows once it is warm."""

        def offer() -> None:
            for published in known.publish(kv, self._rank.options):
                with self._rank.lock:
                    self.port.offer(published)

        in_background("netloader-known", offer, logger=self._rank.logger)

    def announce(self, role: str, place: Place) -> None:
        """Have a registry name this rank whenever it serves a role, until that is not served."""
        with self._rank.lock:
            if role in self._live or role in self._relays:
                self._announcements.begin(role, place, partial(self._announced, role))

    def save(self, role: str, saving: Saving) -> None:
        """Write what is on offer of a role to a folder, in the background."""
        with self._rank.lock:
            live = self._live.get(role)
        if live is not None:
            saving.begin(live.published, self.logger)

    def _announced(self, role: str) -> Candidate | None:
        """What the registry is to say now."""
        with self._rank.lock:
            live, relay = self._live.get(role), self._relays.get(role)
            published = live.published if live else relay.published if relay else None
            told = self.port.told
        return None if published is None else self._announcements.candidate(told, published)

    def end_announcements(self) -> None:
        """Have the registry name this rank no more, before it ends."""
        self._announcements.end_all()

    def relay(self, role: str, facts: Mapping[str, str]) -> RankRelay | None:
        """Open the port for a model that is going to be received, and has these facts.

        It stays open until the model is opened, or abandoned.

        Returns:
            None when the port cannot be had, which the log says.
        """
        with self._rank.guarded(), self._rank.lock:
            if (server := self.port.open()) is not None:
                relay = self._relays[role] = RankRelay(server.endpoint, facts, self._rank)
                return relay
        return None

    def abandon(self, role: str) -> None:
        """A model that was expected, or relayed, is not going to be served if it is not by now."""
        with self._rank.lock:
            relay, expected = self._relays.pop(role, None), role in self._expected
            self._expected.discard(role)
        if relay is not None:
            with self._rank.guarded():
                relay.end()
        with self._rank.guarded(), self._rank.lock:
            if relay is not None:
                relay.forget()
            if role not in self._live:
                self.port.forget(role)
            if relay is not None or expected:
                self._close_unused()

    def close(self) -> None:
        """Serve nothing any more."""
        for role in tuple(self._relays):
            self.abandon(role)
        for live in self.models:
            self._retire(live)

    def _gone(self, live: LiveModel) -> None:
        """A model is gone, or the process ends.

        Runs from the garbage collector, so it must not wait: the thread that has the lock may be
        writing a line of the log, for which it waits for the very thread that collects.
        """
        if not self._rank.lock.acquire(blocking=False):
            later = partial(self._retire, live)
            threading.Thread(target=later, name="netloader-gone", daemon=True).start()
            return
        try:
            self._retire(live)
        finally:
            self._rank.lock.release()

    def _retire(self, live: LiveModel) -> None:
        """Offer a model no more; without another one, stop serving."""
        with self._rank.guarded(), self._rank.lock:
            live.retire()
            if self._live.get(live.served.role) is live:
                del self._live[live.served.role]
                self.port.forget(live.served.role)
            self._close_unused()

    def _close_unused(self) -> None:
        for role in self._announcements.roles - {*self._live, *self._relays}:
            self._announcements.end(role)
        if not self.in_use:
            self.port.close()
