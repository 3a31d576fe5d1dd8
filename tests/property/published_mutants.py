"""Seeded bugs of the life of published models; the others are in mutants.py."""

from typing import Final

from tests.property.layers import LIFE, Mutant

TABLE: Final = "netloader/fsm/published.py"
DATA: Final = "netloader/fsm/published_life.py"

PUBLISHED_MUTANTS: Final[dict[str, Mutant]] = {
    "a fence forgets that the model was lost": Mutant(
        LIFE, TABLE, r"life\.data\.why if isinstance\(life\.data, ev\.Lost\) else \"\"", '""'
    ),
    "a second fence is forgotten": Mutant(
        LIFE, TABLE, r"depth=data\.depth \+ 1", "depth=data.depth"
    ),
    "a fence leaves sessions alone": Mutant(
        LIFE, TABLE, r"(ev\.Fenced\(event\.why, 1, .*\))\n    yield .*\n", r"\1\n    return ()\n"
    ),
    "memory is written to while digests are computed": Mutant(
        LIFE, DATA, r"self\.readers or self\.work\)", "self.readers)"
    ),
    "memory is written to while a session has a place": Mutant(
        LIFE, DATA, r"not \(self\.clients or ", "not ("
    ),
    "the last session does not let a fence go on": Mutant(
        LIFE, DATA, r"if self\.quiet:", "if self.quiet and not isinstance(event, ev.ClientLeft):"
    ),
    "somebody begins to read behind a fence": Mutant(
        LIFE,
        TABLE,
        r"\(F, L, R\), ev\.ReaderArrived, _deny",
        "(F, L, R), ev.ReaderArrived, _admit_reader",
    ),
    "a doubt is answered by an audit that began before it": Mutant(
        LIFE, TABLE, r"again=life\.work is not None", "again=False"
    ),
    "a change that is found behind a fence is forgotten": Mutant(
        LIFE,
        TABLE,
        r"row\(F, ev\.ChangeFound, +F, _note_loss\)",
        "row(F, ev.ChangeFound, F, _nothing)",
    ),
    "lost weights are offered with the digests they had": Mutant(
        LIFE, TABLE, r"bool\(data\.digests\) and not data\.lost", "bool(data.digests)"
    ),
    "a relay is offered as a whole before it is": Mutant(
        LIFE, TABLE, r"\) == len\(data\.digests\)", ") > 0"
    ),
    "sessions are told again of what they know": Mutant(
        LIFE,
        TABLE,
        r"more = frozenset\(event\.segments\) - data\.available",
        "more = frozenset(event.segments)",
    ),
    "sessions go on reading a model that is gone": Mutant(
        LIFE,
        TABLE,
        r"(ev\.Retired\(event\.why, event\.reason\))\n    yield .*\n",
        r"\1\n    return ()\n",
    ),
    "memory is released twice": Mutant(LIFE, TABLE, r"released=True", "released=False"),
}
