"""Seeded bugs of transports; the others are in mutants.py."""

from typing import Final

from tests.property.layers import L4, TRANSPORTS, Mutant

SHM: Final = "netloader/io/transports/shm.py"
POPULATING: Final = "netloader/io/populating.py"

TRANSPORT_MUTANTS: Final[dict[str, Mutant]] = {
    "any memory is taken for the server's without proof": Mutant(
        TRANSPORTS, SHM, r"if count < NONCE_BYTES or not _same\(.*\):", "if False:"
    ),
    "a host is not asked for its boot id": Mutant(
        TRANSPORTS, SHM, r"if not here or any\(rendezvous\.get.*\):", "if not here:"
    ),
    "a client need not show that it has read the server's memory": Mutant(
        TRANSPORTS, SHM, r"if not _same\(said, _proof\(self\._nonce, \"client\"\)\):", "if False:"
    ),
    "a server is done before the last segment was read": Mutant(
        TRANSPORTS, SHM, r"while unread:", "while False:"
    ),
    "a client reads on when the server has ended": Mutant(
        TRANSPORTS, SHM, r"if gone\.poll\(0\):", "if False:"
    ),
    "under Yama a client may read the server after its session": Mutant(
        TRANSPORTS, SHM, r" +self\._tracer\.end\(self\)\n", ""
    ),
    "the last word of a client waits for an acknowledgement": Mutant(
        TRANSPORTS,
        "netloader/io/transports/lanes.py",
        r"lane\.setsockopt\(socket\.IPPROTO_TCP, socket\.TCP_NODELAY, 1\)",
        "pass",
    ),
    "a sender does not wait for its turn": Mutant(
        TRANSPORTS, "netloader/io/transports/tcp.py", r"self\._pace\.take\(.*\)", "pass"
    ),
    "each lane of a session takes a turn": Mutant(
        TRANSPORTS, "netloader/io/pacing.py", r"with self\._turn:", "if True:"
    ),
    "a busy engine limits nothing": Mutant(
        TRANSPORTS,
        "netloader/io/pacing.py",
        r"return self\.lowest if self\.busy is not None and self\.is_busy\(\) else self\.always",
        "return self.always",
    ),
    "a transport that keeps to no limit is offered": Mutant(
        TRANSPORTS, "netloader/io/worker.py", r"if self\._setup\.pace\.limited and .*:", "if False:"
    ),
    "what the thread that verifies finds is forgotten": Mutant(
        TRANSPORTS,
        "netloader/io/transports/host_chunks.py",
        r"if failure is not None:",
        "if False:",
    ),
    "a second request goes to a transport that carries one": Mutant(
        L4,
        "netloader/io/worker.py",
        r"if self\._runs > 1 and not repeatable:",
        "if False:",
    ),
    "a client's memory is populated without a bound": Mutant(
        TRANSPORTS, POPULATING, r"> AHEAD_BYTES and", "> 2 * AHEAD_BYTES and"
    ),
    "pages beside the tensors are populated": Mutant(
        TRANSPORTS,
        POPULATING,
        r"return -\(-begin // mmap\.PAGESIZE\)",
        "return begin // mmap.PAGESIZE",
    ),
    "files are populated": Mutant(TRANSPORTS, POPULATING, r' and inode == "0"', ""),
}
