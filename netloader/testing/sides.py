"""The names of the two sides."""

from typing import Literal, TypeAlias

Role: TypeAlias = Literal["client", "server"]
OTHER: dict[Role, Role] = {"client": "server", "server": "client"}
