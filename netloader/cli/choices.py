"""Words that options choose from, apart from what they choose, so that help loads no more."""

from enum import StrEnum


class Machine(StrEnum):
    """A state machine."""

    CLIENT = "client"
    SERVER = "server"
    SOURCE = "source"
    MODEL = "model"


class Format(StrEnum):
    """As what a machine is written."""

    MERMAID = "mermaid"
    TABLE = "table"
