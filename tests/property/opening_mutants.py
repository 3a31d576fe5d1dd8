"""Seeded bugs of candidates, answers and stepping down; the others are in mutants.py."""

from typing import Final

from tests.property.layers import L2, L4, TRANSPORTS, Mutant

CLIENT: Final = "netloader/fsm/client_opening.py"
SERVER: Final = "netloader/fsm/server_opening.py"
SERVER_SESSION: Final = "netloader/fsm/server_session.py"
TERMS: Final = "netloader/fsm/terms.py"
WORKER: Final = "netloader/io/worker.py"
CLIENT_WORKER: Final = "netloader/io/client_worker.py"

OPENING_MUTANTS: Final[dict[str, Mutant]] = {
    "segments are asked for before the server's end is open": Mutant(
        L2, CLIENT, r"return isinstance\(session\.reply, Opened\)", "return True"
    ),
    "a candidate is opened twice": Mutant(
        L2,
        "netloader/fsm/client_session.py",
        r"names\[names\.index\(self\.transport\) \+ 1 :\]",
        "names[names.index(self.transport) :]",
    ),
    "a client may answer one candidate again and again": Mutant(
        L2,
        SERVER_SESSION,
        r"names\[names\.index\(self\.transport\) \+ 1 :\]",
        "names[names.index(self.transport) :]",
    ),
    "what the server refuses ends the session": Mutant(
        L2,
        CLIENT,
        r" +row\(V, Unopened, +V, _step_down, +when=.*\n",
        "",
    ),
    "a word that crossed an answer is a violation": Mutant(
        L2, CLIENT, r"return event\.transport in session\.crossing", "return False"
    ),
    "two candidates are joined at once": Mutant(
        L2, SERVER, r"return _in_turn\(session, event\) and session\.joining", "return False"
    ),
    "an answer that was forged is taken": Mutant(
        L4,
        SERVER,
        r"return not auth\.proves\(event, token, hello, session\.nonce\)",
        "return False",
    ),
    "an answer may be of any size": Mutant(
        L4, SERVER, r" and is_rendezvous\(event\.rendezvous\)", ""
    ),
    "a transport may be offered twice": Mutant(
        L4, TERMS, r"if len\(set\(names\)\) < len\(names\):", "if False:"
    ),
    "the answer is not given to the sender": Mutant(
        TRANSPORTS, WORKER, r"sender\.answered\(order\.answer\)", "sender.answered({})"
    ),
    "the senders that were not chosen are kept": Mutant(
        TRANSPORTS, WORKER, r" +self\._senders\.keep\(self\._joined\)\n", ""
    ),
    "a step down after bytes have moved": Mutant(
        L2,
        SERVER,
        r"(    row\(V, Answer, +V, _join, +when=_in_turn\),\n)",
        r"\1    row(State.TRANSFER, Answer, State.TRANSFER, _join, when=_in_turn),\n",
    ),
    "a receiver that was given up is kept": Mutant(
        TRANSPORTS,
        CLIENT_WORKER,
        r" +self\._receivers\.keep\(\)\n        transport = ",
        "        transport = ",
    ),
}
"""By what is wrong then."""
