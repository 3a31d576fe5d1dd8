"""Seeded bugs of relays; the others are in mutants.py."""

from typing import Final

from tests.property.layers import L2, L4, STARTS, Mutant

LEDGER: Final = "netloader/io/store/ledger.py"
PUBLISHED: Final = "netloader/io/published.py"
RELAY: Final = "netloader/io/relay.py"
SERVER: Final = "netloader/io/server.py"
WORKER: Final = "netloader/io/worker.py"
RANK_RELAY: Final = "netloader/vllm_plugin/serve/relay.py"

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
        L4, WORKER, r"self\._runs == 1 and not isinstance\(.*AlwaysInUse\)", "True"
    ),
    "what was received is not watched": Mutant(
        L4, SERVER, r"        model\.watch\(published\)\n", ""
    ),
    "a segment that comes while an offer is prepared is told before the offer": Mutant(
        L2, "netloader/fsm/server.py", r" +row\(V, MoreAvailable, V, _note_more, .*\n", ""
    ),
    "post-processing begins while a child reads": Mutant(
        STARTS, RANK_RELAY, r"if not published\.quiet\(timeout_s\):", "if False:"
    ),
    "a relay keeps alive what post-processing replaces": Mutant(
        STARTS, RANK_RELAY, r"        store\.give_up\(\)\n", ""
    ),
    "children of a starting instance are told to go for good": Mutant(
        STARTS, RANK_RELAY, r"retire\(COME_AGAIN, Reason\.NOT_READY\)", "retire(COME_AGAIN)"
    ),
    "a relay offers a process group": Mutant(
        STARTS, RANK_RELAY, r", transports=RELAYED_OVER\)", ")"
    ),
    "a relay stays when its model is not served after all": Mutant(
        STARTS, "netloader/vllm_plugin/serve/server.py", r"relay\.forget\(\)", "pass"
    ),
    "a relay is offered with the processed layout": Mutant(
        STARTS,
        "netloader/vllm_plugin/config/checks.py",
        r"if layout is LayoutChoice\.PROCESSED:",
        "if False:",
    ),
}
