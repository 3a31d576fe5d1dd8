"""Seeded bugs of transports; the others are in mutants.py."""

from typing import Final

from tests.property.layers import TRANSPORTS, Mutant

SHM: Final = "netloader/io/transports/shm.py"

TRANSPORT_MUTANTS: Final[dict[str, Mutant]] = {
    "the memory file is taken for the server's without proof": Mutant(
        TRANSPORTS,
        SHM,
        r"if not hmac\.compare_digest\(_proof\(nonce, \"server\"\), .*\):",
        "if False:",
    ),
    "a host is not asked for its boot id": Mutant(
        TRANSPORTS, SHM, r"if rendezvous\.get\(\"boot_id\"\) .*:", "if False:"
    ),
}
