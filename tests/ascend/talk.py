"""The conversation with an actor: each command has one answer, which may be an error."""

import contextlib
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

SENTENCE = 2000
STACKS = signal.SIGUSR2
"""What ends an actor that is silent; it prints the stacks of all its threads first."""


def converse(connection: Connection, become: Callable[[], Any]) -> None:
    """Make an actor, then call its methods as told until the other end hangs up."""
    try:
        actor = become()
    except BaseException as error:
        connection.send(_failure(error))
        return
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            method, *arguments = connection.recv()
            try:
                answer = getattr(actor, method)(*arguments)
            except Exception as error:
                answer = _failure(error)
            connection.send(answer)


def _failure(error: BaseException) -> dict[str, str]:
    traceback.print_exc()
    return {"error": f"{type(error).__name__}: {error}"[:SENTENCE]}
