"""The names of the two sides."""

from typing import Literal, TypeAlias

Side: TypeAlias = Literal["client", "server"]
OTHER: dict[Side, Side] = {"client": "server", "server": "client"}
