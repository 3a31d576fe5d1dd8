"""Seeded bugs of tokens and proofs."""

from typing import Final

from tests.property.layers import L1, L2, L4, Mutant

CLIENT: Final = "netloader/fsm/client.py"
SERVER: Final = "netloader/fsm/server.py"
AUTH: Final = "netloader/fsm/auth.py"

PROOF_MUTANTS: Final[dict[str, Mutant]] = {
    "any proof is good": Mutant(L2, AUTH, r"return hmac\.compare_digest\(.*\)", "return bool(mac)"),
    "a client with a token introduces itself to whoever answers": Mutant(
        L2,
        CLIENT,
        r"session\.hello if session\.spec\.token is None else session\.start",
        "session.hello",
    ),
    "a client introduces itself to a server with another token": Mutant(
        L1, CLIENT, r" +row\(H, Challenge, +F, _refuse_server, .*\n", ""
    ),
    "a hello with a wrong proof is taken": Mutant(
        L1,
        SERVER,
        r"return bool\(session\.entry\.tokens\) and _known\(session, event\) is None",
        "return False",
    ),
    "an offer's proof is not looked at": Mutant(
        L1,
        CLIENT,
        r"return challenge is None or not auth\.proves\(.*\)",
        "return challenge is None",
    ),
    "a proof covers neither the segment digests nor the root": Mutant(
        L2,
        AUTH,
        r"if f\.name not in PROOFS\}",
        'if f.name not in (*PROOFS, "segment_digests", "root")}',
    ),
    "a proof does not cover the segment digests": Mutant(
        L4, AUTH, r"if f\.name not in PROOFS\}", 'if f.name not in (*PROOFS, "segment_digests")}'
    ),
    "a proof does not cover the identity": Mutant(
        L2, AUTH, r"if f\.name not in PROOFS\}", 'if f.name not in (*PROOFS, "identity")}'
    ),
    "a proof does not cover the hello": Mutant(
        L4,
        AUTH,
        r"canonical\(\(\*about, opening, nonce, content\)\)",
        "canonical((*about, getattr(opening, 'nonce', ''), nonce, content))",
    ),
    "an offer of an earlier session is taken": Mutant(
        L4,
        AUTH,
        r"canonical\(\(\*about, opening, nonce, content\)\)",
        "canonical((*about, content))",
    ),
}
