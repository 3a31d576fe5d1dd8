"""Serve a model's weights, fill a model from servers. `serve` and `fill` are the way in."""

from netloader.config import Deadlines, Endpoint, Secret
from netloader.errors import UnsafeError, WeightsError
from netloader.io.client import ClientOptions, fill
from netloader.io.outcome import Attempt, Outcome
from netloader.io.publishing import ServerOptions
from netloader.io.server import Server, listen, serve

__all__ = [
    "Attempt",
    "ClientOptions",
    "Deadlines",
    "Endpoint",
    "Outcome",
    "Secret",
    "Server",
    "ServerOptions",
    "UnsafeError",
    "WeightsError",
    "fill",
    "listen",
    "serve",
]
