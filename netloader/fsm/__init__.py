"""The protocol machines and their messages. Pure: no byte, socket, clock or thread.

Feed a `ClientSession` or `ServerSession` one event at a time with `step(event, now)` and perform
the effects of the answer, in order, before the next event. docs/embed/driver.md shows the loop.
"""

from netloader.fsm import client as _client  # noqa: F401 - it gives ClientSession its table
from netloader.fsm import server as _server  # noqa: F401 - and it ServerSession
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import Effect, Verdict
from netloader.fsm.events import Event
from netloader.fsm.fetch import Fetch, FetchOptions
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Manifest, Progress, Segment, TensorSpec, segments_of
from netloader.fsm.messages import Message, Purpose
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import Session, Step
from netloader.fsm.states import State
from netloader.fsm.terms import CatalogEntry, FetchSpec

__all__ = [
    "CatalogEntry",
    "ClientSession",
    "Difference",
    "Effect",
    "Event",
    "Fetch",
    "FetchOptions",
    "FetchSpec",
    "Identity",
    "Manifest",
    "Message",
    "Progress",
    "Purpose",
    "Reason",
    "Segment",
    "ServerSession",
    "Session",
    "State",
    "Step",
    "TensorSpec",
    "Verdict",
    "segments_of",
]
