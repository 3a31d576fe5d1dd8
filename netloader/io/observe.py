"""Log lines of a session's steps. Neither the machines nor the drivers log them."""

from collections import defaultdict
from collections.abc import Mapping

from netloader.config import Endpoint, FolderEndpoint
from netloader.fsm.effects import (
    AuditWeights,
    JoinTransport,
    OpenTransport,
    PrepareOffer,
    StartTransfer,
)
from netloader.fsm.events import (
    Connected,
    ConnectionLost,
    OfferReady,
    TransferFailed,
    Transferred,
    TransportRefused,
)
from netloader.fsm.messages import PROTOCOL_VERSION, Offer, Unopened
from netloader.fsm.reasons import Reason
from netloader.fsm.session import Session, Step
from netloader.fsm.states import TERMINAL, State
from netloader.log import Logger, emit
from netloader.log_events import Level

CLOCK_S = 1e-9
"""What a monotonic clock can tell apart. A quotient by much less has no finite value."""


class Observer:
    """Watches one session: its log lines, and the seconds and bytes its owner reports."""

    def __init__(self, logger: Logger, peer: Endpoint, fields: Mapping[str, object]) -> None:
        self.seconds: dict[State, float] = defaultdict(float)
        self.moved_bytes = 0
        self._opened = False
        self._heard = False
        self._probe = False
        """The peer connected and went away without a byte, as health checks of a TCP port do."""
        self._transferring = False
        self._finished = False
        """Whether the last transfer that started is complete."""
        self._logger = logger
        self._fields = {
            "network.peer.address": peer.host,
            "network.peer.port": peer.port,
            "network.transport": "tcp",
            **({"netloader.folder": str(peer)} if isinstance(peer, FolderEndpoint) else {}),
            **fields,
        }

    def heard(self) -> None:
        """Note that the peer has sent something, if only half a frame."""
        self._heard = True

    def saw(self, session: Session, step: Step) -> None:
        """Log one step. Messages that reach a session that is over are not logged."""
        if step.before in TERMINAL:
            return
        self._open(session, step)
        if step.after is not step.before:
            self.seconds[step.before] += step.lasted_s
            if self._opened:
                self._say("session.transition", session, _move(step), self._level)
        if isinstance(step.event, Offer):
            self._fields["netloader.digest_algorithm"] = step.event.digest_algorithm
        self._transfer(session, step)
        self._refusals(session, step)
        for effect in step.effects:
            if isinstance(effect, AuditWeights):
                self._say("weights.doubted", session, {})
            if isinstance(effect, PrepareOffer):
                self._fields["netloader.transport"] = effect.transports[0]
                self._fields["netloader.digest_algorithm"] = effect.digest_algorithm
            if isinstance(effect, OpenTransport | JoinTransport):
                self._fields["netloader.transport"] = effect.transport

    def closed(self, session: Session) -> None:
        """Log the canonical line: the whole session in one record."""
        verdict = session.verdict
        if verdict is None or not self._opened:
            return
        if verdict.reason is Reason.PROTOCOL_VIOLATION and not verdict.by_peer:
            self._say("peer.violation", session, {"netloader.detail": verdict.detail})
        spent = self.seconds.get(State.TRANSFER, 0.0)
        fields: dict[str, object] = {
            "netloader.outcome": verdict.state.value,
            "netloader.reason": verdict.reason.value,
            "netloader.detail": verdict.detail,
            "netloader.by_peer": verdict.by_peer,
            "netloader.weights_dirty": verdict.weights_dirty,
            "netloader.transfer.bytes": self.moved_bytes,
            "netloader.transfer.duration_s": round(spent, 6),
            "netloader.transfer.throughput_bytes_per_s": _rate(self.moved_bytes, spent),
            "network.protocol.name": "netloader",
            "network.protocol.version": PROTOCOL_VERSION,
        }
        for state, seconds in self.seconds.items():
            fields[f"netloader.phase.{state.value}.duration_s"] = round(seconds, 6)
        for i, difference in enumerate(verdict.differences[:8]):
            fields[f"netloader.difference.{i}"] = str(difference)
        level: Level = "info" if verdict.state is State.DONE else "warning"
        if verdict.reason is Reason.REFERRED:  # the client goes on at once
            level = "debug"
        level = self._level or level
        emit(self._logger, "netloader.session.closed", self._with(session, fields), level=level)

    def trouble(self, error: Exception) -> None:
        """Log a bug in netloader, with its stack."""
        emit(self._logger, "netloader.driver.error", self._fields, exc_info=error)

    def _open(self, session: Session, step: Step) -> None:
        """A server's session counts as open when its peer has spoken: a lane never does so here."""
        if not self._opened and (session.side == "client" or not isinstance(step.event, Connected)):
            self._opened = True
            gone = isinstance(step.event, ConnectionLost)
            self._probe = session.side == "server" and gone and not self._heard
            now = {"netloader.state": step.before.value}
            self._say("session.opened", session, now, self._level)

    def _transfer(self, session: Session, step: Step) -> None:
        """A transfer that started ends once: done, failed, or stopped because the session ends."""
        if isinstance(step.event, Transferred):
            self.moved_bytes += step.event.nbytes
            self._transferring, self._finished = False, True
            moved = {"netloader.transfer.bytes": step.event.nbytes}
            self._say("transfer.finished", session, moved)
        if isinstance(step.event, TransferFailed) and not self._finished:
            self._say("transfer.aborted", session, {"netloader.detail": step.event.detail})
        elif self._transferring and step.after in TERMINAL:
            self._say("transfer.aborted", session, {})
        for effect in step.effects:
            if isinstance(effect, StartTransfer):
                self._transferring, self._finished = True, False
                asked = {
                    "netloader.segments": len(effect.segments),
                    "netloader.lanes": effect.lanes,
                }
                self._say("transfer.started", session, asked)

    def _refusals(self, session: Session, step: Step) -> None:
        """Say of each candidate of an offer that cannot be opened why; the session goes on."""
        refused: tuple[TransportRefused | Unopened, ...] = ()
        if isinstance(step.event, OfferReady):
            refused = step.event.left_out
        elif isinstance(step.event, TransportRefused | Unopened):
            refused = (step.event,)
        for each in refused if step.after is step.before else ():
            fields = {"netloader.transport": each.transport, "netloader.detail": each.detail}
            self._say("transport.refused", session, fields)

    @property
    def _level(self) -> Level | None:
        """The level of the lines of this session, where it is not the usual one."""
        return "debug" if self._probe else None

    def _say(
        self,
        event: str,
        session: Session,
        fields: Mapping[str, object],
        level: Level | None = None,
    ) -> None:
        emit(self._logger, f"netloader.{event}", self._with(session, fields), level=level)

    def _with(self, session: Session, fields: Mapping[str, object]) -> dict[str, object]:
        own = {"netloader.side": session.side, "netloader.session.id": session.name}
        return {**self._fields, **own, **fields}


def _rate(nbytes: int, seconds: float) -> int:
    """Bytes a second; 0 for no time, or less of it than a clock can tell."""
    return round(nbytes / seconds) if seconds > CLOCK_S else 0


def _move(step: Step) -> dict[str, object]:
    return {
        "netloader.state.from": step.before.value,
        "netloader.state.to": step.after.value,
        "netloader.trigger": type(step.event).__name__.lower(),
    }
