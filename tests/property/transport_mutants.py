"""Seeded bugs of transports; the others are in mutants.py."""

from typing import Final

from tests.property.layers import TRANSPORTS, Mutant

SHM: Final = "netloader/io/transports/shm.py"

TRANSPORT_MUTANTS: Final[dict[str, Mutant]] = {
    "a slot of the memory file is filled before it was read": Mutant(
        TRANSPORTS, SHM, r"if unread == SLOTS:", "if unread == -1:"
    ),
    "the memory file is taken for the server's without proof": Mutant(
        TRANSPORTS,
        SHM,
        r"if not hmac\.compare_digest\(_proof\(nonce, \"server\"\), .*\):",
        "if False:",
    ),
    "a client need not show that it has read the memory file": Mutant(
        TRANSPORTS, SHM, r"if not hmac\.compare_digest\(said, expected\):", "if False:"
    ),
    "a host is not asked for its boot id": Mutant(
        TRANSPORTS, SHM, r"if rendezvous\.get\(\"boot_id\"\) .*:", "if False:"
    ),
    "a memory file outlives its session": Mutant(
        TRANSPORTS,
        SHM,
        r"INHERITANCE\.close\(self\._file\)",
        "setattr(INHERITANCE, repr(self), self._file)",
    ),
}
