"""Seeded bugs of frames, connections and the driver; the others are in mutants.py."""

from typing import Final

from tests.property.layers import AIO, L3, L4, Mutant

FRAMES: Final = "netloader/wire/frames.py"
CONNECTION: Final = "netloader/wire/connection.py"
ACCEPTOR: Final = "netloader/wire/acceptor.py"
DRIVER: Final = "netloader/io/driver.py"
AIO_CLIENT: Final = "netloader/aio/client.py"
REACTOR: Final = "netloader/aio/reactor.py"

WIRE_MUTANTS: Final[dict[str, Mutant]] = {
    # frames and the driver
    "the decoder waits for one byte too many": Mutant(
        L3, FRAMES, r"\(self\._buffer\) < end:", "(self._buffer) <= end:"
    ),
    "the decoder takes a frame one byte too long": Mutant(
        L3, FRAMES, r"if length > self\.limit:", "if length > self.limit + 1:"
    ),
    "the decoder listens on after a violation": Mutant(L3, FRAMES, r" +self\._dead = True\n", ""),
    "half a frame is lost when a read ends in it": Mutant(
        L3,
        FRAMES,
        r"return None\n        document",
        "return self._buffer.clear()\n        document",
    ),
    "a send that failed makes the link deaf": Mutant(
        L3,
        DRIVER,
        r"self\.connection\.send_failed\(\)",
        "self.connection.send_failed(); self.connection.eof_received = True",
    ),
    "a settled link hangs up before its last word is out": Mutant(
        L3, DRIVER, r"eof_to_send and not self\._out:", "eof_to_send:"
    ),
    "a settled link does not wait for its peer": Mutant(
        L3, DRIVER, r"sock\.shutdown\(socket\.SHUT_WR\)", "self.close()"
    ),
    "bytes that the socket did not take are lost": Mutant(
        L3,
        DRIVER,
        r"del self\._out\[: sock\.send\(self\._out\)\]",
        "sock.send(self._out); self._out.clear()",
    ),
    # connections and acceptors
    "a session may turn into a lane": Mutant(
        L4,
        CONNECTION,
        r"heard = Violated\(.*\)",
        "return",
    ),
    "frames are bounded by what the peer might send at first": Mutant(
        L4, CONNECTION, r" +self\._decoder\.limit = self\.session\.frame_limit\n", ""
    ),
    "a settled connection is closed at once": Mutant(
        L4, CONNECTION, r"self\.closed \|= self\._mute", "self.closed = True"
    ),
    "a settled connection lingers without end": Mutant(
        L4,
        CONNECTION,
        r"return self\._linger_until if self\.closing else",
        "return None if self.closing else",
    ),
    "a task is given twice": Mutant(
        L4,
        CONNECTION,
        r"tasks, self\._tasks = tuple\(self\._tasks\), \[\]",
        "tasks = tuple(self._tasks)",
    ),
    "a session's last words go to a peer that is gone": Mutant(
        L4, CONNECTION, r"self\._out \+= \[\] if self\._mute else ", "self._out += "
    ),
    "the first frame of a connection is lost": Mutant(
        L4, ACCEPTOR, r"return Control\(bytes\(self\._data\)\)", "return Control(data)"
    ),
    "a connection may say nothing for ever": Mutant(
        L4, ACCEPTOR, r"None if now < self\._deadline else ", "None and "
    ),
    "bytes after the first frame of a lane are taken": Mutant(
        L4, ACCEPTOR, r"return self\._decoder\.wanted", "return 1 << 16"
    ),
    # asyncio
    "a task that is cancelled does not tell the source": Mutant(
        AIO, AIO_CLIENT, r" +reactor\.call\(filling\.cancel\)\n", ""
    ),
    "a second cancellation gives the model back while it is written to": Mutant(
        AIO, AIO_CLIENT, r"while not task\.done\(\):", "if not task.done():"
    ),
    "a deadline that a call has changed is not set anew": Mutant(
        AIO, REACTOR, r"(future\.set_result\(None\)\n) +self\._arm\(\)\n", r"\1"
    ),
    "what this side finds out overtakes the peer's word": Mutant(
        AIO, REACTOR, r"self\._loop\.call_soon, self\.call, call\)", "self.call, call)"
    ),
}
