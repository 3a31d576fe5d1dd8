"""Serve and fill on an asyncio event loop: no thread but those that move and hash weights.

The arguments and results are those of `netloader.io.serve` and `netloader.io.fill`.
"""

from netloader.aio.client import fill
from netloader.aio.server import Server, listen, serve

__all__ = ["Server", "fill", "listen", "serve"]
