"""Seeded bugs of the choice and the making of digests; the others are in mutants.py."""

from typing import Final

from tests.property.layers import L4, Mutant

DIGEST_MUTANTS: Final[dict[str, Mutant]] = {
    "on a network a client with a token takes the digest that stops no attacker": Mutant(
        L4,
        "netloader/fsm/digest_choice.py",
        r"if choice == AUTO and channel is Channel\.EXPOSED:",
        "if False:",
    ),
    "a second set of digests is not compared with the first": Mutant(
        L4,
        "netloader/io/other_digests.py",
        r"if why := difference\(.*\):",
        'if why := "":',
    ),
}
