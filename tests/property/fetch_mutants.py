"""Seeded bugs of a fetch; the others are in mutants.py."""

from typing import Final

from tests.property.layers import FETCHES, L0, L4, Mutant

FETCH: Final = "netloader/fsm/fetch.py"
SOURCE: Final = "netloader/fsm/source.py"

FETCH_MUTANTS: Final[dict[str, Mutant]] = {
    "a source that was busy has no time to be asked again": Mutant(
        L0, SOURCE, r" +Stage\.RESTING: .*\n", ""
    ),
    "two sources are asked for one segment": Mutant(
        FETCHES, FETCH, r"return self\.missing\(\)\.difference\(\*asked\)", "return self.missing()"
    ),
    "a late byte of a source that failed lands on a verified segment": Mutant(
        FETCHES,
        SOURCE,
        r"(def _give_up.*\n    del event\n)",
        r"\1    source.assignment = Assignment()\n",
    ),
    "a late byte of a slow source lands on a verified segment": Mutant(
        FETCHES,
        SOURCE,
        r"(def _take_back.*\n    del event\n)",
        r"\1    source.assignment = Assignment()\n",
    ),
    "two roots are mixed": Mutant(
        FETCHES, SOURCE, r"return event\.root != source\.holding\.root and .*", "return False"
    ),
    "a late byte of the root before lands in the present one": Mutant(
        FETCHES, SOURCE, r"    source\.keeps_root = True\n", ""
    ),
    "what was verified against another root counts": Mutant(
        FETCHES, SOURCE, r" +holding\.verified\.clear\(\)\n", ""
    ),
    "what arrived after the end does not count": Mutant(
        FETCHES, SOURCE, r" +row\(E, SegmentVerified, .*\n", ""
    ),
    "sources are asked for what they have not": Mutant(
        FETCHES, FETCH, r"sorted\(unasked & source\.available\)", "sorted(unasked)"
    ),
    "more sources are asked at once than allowed": Mutant(
        FETCHES, FETCH, r"or asked < self", "or asked <= self"
    ),
    "patience has no end": Mutant(
        FETCHES, SOURCE, r"return source\.holding\.now >= .*", "return False"
    ),
    "a slow source keeps its work": Mutant(
        FETCHES, FETCH, r"return assignment\.since \+ .*", "return math.inf"
    ),
    "a fetch waits without end for sources that have nothing": Mutant(
        FETCHES, FETCH, r"return math\.inf if self\._some\(\*going_on\) else .*", "return math.inf"
    ),
    "a transport is stepped down again and again": Mutant(
        FETCHES, SOURCE, r" and not source\.stepped_down", ""
    ),
    "a transport that moved bytes is stepped down": Mutant(
        FETCHES, SOURCE, r" and not source\.delivered", ""
    ),
    "sources that were set aside are forgotten": Mutant(
        FETCHES, FETCH, r"self\._tell\(source, Recalled\(\)\)", "pass"
    ),
    "a fetch ends while a session may still write": Mutant(
        FETCHES,
        FETCH,
        r"if not self\._some\(\*SESSIONS\):\n( +self\._effects\.append\(self)",
        r"if True:\n\1",
    ),
    "a cancelled fetch goes on receiving": Mutant(
        FETCHES, FETCH, r" +self\._dismiss\(Stage\.RECEIVING\)\n", ""
    ),
    "the first request that is completed is the last": Mutant(
        FETCHES, SOURCE, r"holding\.filled = not holding\.missing\(\)", "holding.filled = True"
    ),
    "busy sources leave no room for others": Mutant(
        L4, FETCH, r"active = known - .*", "active = known"
    ),
    "sources that were named are taken up without a bound": Mutant(
        L4, FETCH, r", MOST_KNOWN - known\)", ", MOST_KNOWN)"
    ),
    "a pause that is no number is waited for": Mutant(
        L4, SOURCE, r"if not math\.isfinite\(seconds\):", "if False:"
    ),
}
"""By what is wrong then."""
