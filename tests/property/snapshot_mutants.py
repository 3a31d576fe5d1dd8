"""Seeded bugs of folders that hold an instance: their cards, their ranks, what is proven."""

from typing import Final

from tests.property.layers import SNAPSHOTS, Mutant

CARDS: Final = "netloader/io/store/cards.py"
PUBLISHING: Final = "netloader/io/publishing.py"
SESSION: Final = "netloader/fsm/server_session.py"
COPYING: Final = "netloader/cli/copying.py"
PROVING: Final = "netloader/cli/proving.py"
COMPOSED: Final = "netloader/io/store/composed.py"
MATCHING: Final = "netloader/io/store/matching.py"
SNAPSHOT: Final = "netloader/cli/snapshot.py"

SNAPSHOT_MUTANTS: Final[dict[str, Mutant]] = {
    "a client of one rank is offered another one": Mutant(
        SNAPSHOTS, SESSION, r"of_part or of_role", "of_role"
    ),
    "what a file holds now is offered with digests of its own": Mutant(
        SNAPSHOTS, PUBLISHING, r"published\.seal\(proof\.segment_digests\)", "published.seal()"
    ),
    "a damaged card is believed": Mutant(
        SNAPSHOTS, CARDS, r"card\.status\.root != root_digest\(digests\)", "False"
    ),
    "a card with digests of other segments is believed": Mutant(
        SNAPSHOTS, PUBLISHING, r"if len\(proof\.segment_digests\) != .*:", "if False:"
    ),
    "a folder that has changed passes the comparison": Mutant(
        SNAPSHOTS, PROVING, r"if why := difference\((.*)\):", r"if why := difference(\1) and None:"
    ),
    "weights that were changed meanwhile are copied": Mutant(
        SNAPSHOTS, COPYING, r"before\.root not in \(\"\", root\)", "False"
    ),
    "a map is believed because hashes agree": Mutant(
        SNAPSHOTS, COPYING, r"        compare\(open_part\(folder\), .*\n", ""
    ),
    "columns are read as rows": Mutant(SNAPSHOTS, COMPOSED, r"if piece\.is_dense:\n", "if True:\n"),
    "a piece ends beyond its tensor": Mutant(
        SNAPSHOTS, COMPOSED, r"if not good or end > block\.nbytes:", "if not good:"
    ),
    "columns are not looked for": Mutant(
        SNAPSHOTS, MATCHING, r"\{1, self\._parts\[number\]\}", "{1}"
    ),
    "a snapshot lacks a rank": Mutant(SNAPSHOTS, SNAPSHOT, r"if rank not in there:", "if False:"),
}
