"""Seeded bugs of repeated requests; the others are in mutants.py."""

from typing import Final

from tests.property.layers import L2, L4, MANY, Mutant

REQUESTS: Final = "netloader/fsm/requests.py"
CLIENT: Final = "netloader/fsm/client.py"
SERVER: Final = "netloader/fsm/server.py"
RANGES: Final = "netloader/fsm/ranges.py"
AUTH: Final = "netloader/fsm/auth.py"
TERMS: Final = "netloader/fsm/terms.py"
ASKING: Final = "netloader/io/asking.py"
REFERRALS: Final = "netloader/io/referrals.py"
FILLING: Final = "netloader/io/filling.py"
SESSION: Final = "netloader/fsm/session.py"
SOURCE_SESSION: Final = "netloader/io/source_session.py"
CLIENT_WORKER: Final = "netloader/io/client_worker.py"
SETTLING: Final = "netloader/io/settling.py"

REQUEST_MUTANTS: Final[dict[str, Mutant]] = {
    "a segment may be asked for again and again": Mutant(
        L2, REQUESTS, r"self\.asked\.isdisjoint\(wanted\) and ", ""
    ),
    "a client may ask for nothing, again and again": Mutant(
        L2, REQUESTS, r" and \(bool\(wanted\) or not self\.count\)", ""
    ),
    "a request does not wait for the one before": Mutant(
        L2, REQUESTS, r"self\.at_hand is None and ", ""
    ),
    "requests may have any numbers": Mutant(
        L2, REQUESTS, r"request\.number == self\.count \+ 1", "request.number > 0"
    ),
    "a request that is complete stays at hand": Mutant(
        L2, REQUESTS, r"return type\(self\)\(self\.count, self\.asked\)", "return self"
    ),
    "what is said of one request counts for another": Mutant(
        L4, CLIENT, r"return not under_way or .*", "return not under_way"
    ),
    "a late `begin` starts the next request": Mutant(
        L4, CLIENT, r"return asked and event\.number .*", "return asked"
    ),
    "a server is asked for what it has not": Mutant(
        L4, SERVER, r" +row\(T, Request, +F, _refuse_early, .*\n", ""
    ),
    "a server says again and again what it has": Mutant(
        L4, SERVER, r"more = event\.segments - session\.available", "more = event.segments"
    ),
    "a client waits for more of a server that is gone": Mutant(
        L2, CLIENT, r" and not session\.lacking\)", ")"
    ),
    "a source may say for ever that it has more": Mutant(
        L4,
        CLIENT,
        r"return are_ranges\(event\.segments, count\) and not .*issuperset\(",
        "return are_ranges(event.segments, count) and bool(",
    ),
    "ranges may be any": Mutant(L4, RANGES, r"return all\(a < b .*", "return True"),
    "a client that was cut off asks on": Mutant(
        L4, CLIENT, r" +row\(T, Ask, +F, _too_late, .*\n", ""
    ),
    "a client that was sent nothing is believed to have verified": Mutant(
        L4, SERVER, r"return session\.offered and event == .*", "return session.offered"
    ),
    "all requests share one deadline": Mutant(
        L4,
        SESSION,
        r"return self\.requests\.count, self\.request is None",
        "return self.state",
    ),
    "weights are settled before all of them are there": Mutant(
        L4, SETTLING, r"    if ledger\.progress\.missing\(\):\n +return\n", ""
    ),
    "what a source says later to have is not heard": Mutant(
        L4, ASKING, r"self\._noted \|= segments", "pass"
    ),
    "what a failed session brought is forgotten": Mutant(
        L4, FILLING, r"(any more\.\"\"\"\n) +self\._count\(key\)\n", r"\1"
    ),
    "a manifest that differs is left out": Mutant(
        L4, SERVER, r"None if session\.hello\.manifest_digest == .* else mine\.manifest", "None"
    ),
    "a proof does not cover a manifest that is left out": Mutant(
        L4, AUTH, r"opening\.manifest_digest if manifest is None", '"" if manifest is None'
    ),
    "a source may name any number of others": Mutant(
        L4, TERMS, r"in islice\(texts, MAX_OTHER_SOURCES\)", "in texts"
    ),
    "a client is named to itself": Mutant(L4, REFERRALS, r" if known != place\)", ")"),
    "sources that name each other are asked for ever": Mutant(
        L4, "netloader/fsm/directory.py", r" and endpoint not in self\._known:", ":"
    ),
    # several sources at once
    "one source is asked after the other, however many may be": Mutant(
        MANY, FILLING, r"FetchOptions\(options\.parallel, ", "FetchOptions(1, "
    ),
    "a session with other weights does not wait to be set aside": Mutant(
        L4, ASKING, r" +self\._wait_for\(lambda: self\._taken\)\n", ""
    ),
    "two roots are mixed where only values differ": Mutant(
        L4, ASKING, r"segments, manifest\.digest\)", "segments)"
    ),
    "what came for other weights counts as arrived": Mutant(
        L4, CLIENT_WORKER, r"frozenset\(\) if self\._lease is None else (self\._ledger\.arr)", r"\1"
    ),
    "a loop waits for a source that may still write": Mutant(
        MANY, SOURCE_SESSION, r"if not self\._ended:", "if False:"
    ),
    "a call ends, and asks others, while a dropped source may still write": Mutant(
        MANY,
        SOURCE_SESSION,
        r"if not self\._ended:((?:.*\n)+?) +self\.join\(\).*\n",
        r"if False:\1",
    ),
    "each session completes the store": Mutant(
        L4, SETTLING, r"if ledger\.settled_for != manifest\.digest:", "if True:"
    ),
    "two sessions complete the store at the same time": Mutant(
        L4, SETTLING, r"while not ledger\.settling\.acquire\(timeout=LOOK_S\):", "while False:"
    ),
    "sessions go on when the call is cancelled": Mutant(
        MANY, FILLING, r" +self\._tell\(CancelRequested\(request\.reason\)\)\n", ""
    ),
    "a source that needs a second request in its session is given up": Mutant(
        MANY, CLIENT_WORKER, r"repeatable=transport\.capabilities\.repeatable", "repeatable=True"
    ),
}
"""By what is wrong then."""
