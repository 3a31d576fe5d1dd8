"""Seeded bugs of relays; the others are in mutants.py."""

from typing import Final

from tests.property.layers import L2, L4, Mutant

LEDGER: Final = "netloader/io/store/ledger.py"
PUBLISHED: Final = "netloader/io/published.py"
RELAY: Final = "netloader/io/relay.py"
SERVER: Final = "netloader/io/server.py"
WORKER: Final = "netloader/io/worker.py"

RELAY_MUTANTS: Final[dict[str, Mutant]] = {
    "a relay serves an unverified segment": Mutant(
        L4,
        LEDGER,
        r"(        self\._in_place = self\._ledger\.begin\(self\)\n)",
        r"\1        self._ledger._audience.have(segment.index)\n",
    ),
    "a relay's clients are not told of more segments": Mutant(
        L4, PUBLISHED, r"(case ev\.TellOfMore\(segments\):\n +)self\._say.*", r"\1pass"
    ),
    "a relay whose fill has failed goes on": Mutant(
        L4,
        RELAY,
        r"            published\.retire\(\"the weights were not received\"\)\n",
        "            pass\n",
    ),
    "a relay hashes what it has verified": Mutant(
        L4, WORKER, r"self\._runs == 1 and available is None", "True"
    ),
    "what was received is not watched": Mutant(
        L4, SERVER, r"        model\.watch\(published\)\n", ""
    ),
    "a segment that comes while an offer is prepared is told before the offer": Mutant(
        L2, "netloader/fsm/server.py", r" +row\(V, MoreAvailable, V, _note_more, .*\n", ""
    ),
}
