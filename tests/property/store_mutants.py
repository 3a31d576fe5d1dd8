"""Seeded bugs of stores and the ledger; the others are in mutants.py."""

from typing import Final

from tests.property.layers import L4, Mutant

LEDGER: Final = "netloader/io/store/ledger.py"

STORE_MUTANTS: Final[dict[str, Mutant]] = {
    "two roots are mixed": Mutant(L4, LEDGER, r"if self\._leases:", "if False:"),
    "a late byte of a dropped source lands on a verified segment": Mutant(
        L4, LEDGER, r"if self\._places\.setdefault\(index, writer\) is not writer:", "if False:"
    ),
    "a duplicate is written over a verified segment": Mutant(
        L4, LEDGER, r"if index in self\._verified or index in self\._places:", "if False:"
    ),
    "a dropped source still gets memory": Mutant(
        L4,
        LEDGER,
        r"        self\.lease\.check\(\)\n        if self\._in_place",
        "        if self._in_place",
    ),
    "what waits in scratch memory is forgotten": Mutant(
        L4, LEDGER, r"if spare is not None:\n            with", "if False:\n            with"
    ),
    "segments of another root are available": Mutant(
        L4, LEDGER, r"if same else frozenset\(\)", "if True else frozenset()"
    ),
}
