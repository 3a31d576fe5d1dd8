"""`netloader verify`: whether two servers hold the same weights, without moving them."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from netloader.cli.answers import Answer, plain
from netloader.cli.codes import Code
from netloader.cli.places import places_of
from netloader.cli.sources import Told, ask_first, ask_instance
from netloader.config import Endpoint
from netloader.fsm.identity import Difference
from netloader.io.options import ClientOptions

SEALED = ("offered", "auditing", "receiving")
"""States in which the root says what the weights are."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models of one role and rank. `same` is None where that cannot be told."""

    role: str
    same: bool | None
    why: str
    differences: tuple[Difference, ...] = ()
    """Of identities; the weights may be the same in spite of them."""


def run(first: str, second: str, options: ClientOptions) -> Answer:
    """Compare what two instances say of their weights, rank by rank and role by role.

    Raises:
        CommandError: one of them does not answer.
    """
    mine, theirs = ({t.name: t for t in _models(text, options)} for text in (first, second))
    found = [compared(mine[name], theirs[name]) for name in mine if name in theirs]
    alone = [name for name in {**mine, **theirs} if (name in mine) is not (name in theirs)]
    found += [Comparison(name, None, "only one of the two serves it") for name in alone]
    same = all(comparison.same for comparison in found)
    data = {
        "same": same,
        "models": [
            {
                "role": each.role,
                "same": each.same,
                "why": each.why,
                "differences": [
                    {"field": d.field, "first": d.mine, "second": d.theirs}
                    for d in each.differences
                ],
            }
            for each in found
        ],
    }
    shown = tuple(part for each in found for part in _shown(each, first, second))
    return Answer(data, shown, Code.OK if same else Code.NO)


def _models(text: str, options: ClientOptions) -> list[Told]:
    """The models of the instance that a text names, of all its ranks on that host."""
    return ask_instance(_answering(text, options), options)


def _answering(text: str, options: ClientOptions) -> Endpoint:
    """The server that a text names; of several the first that answers."""
    places = places_of([text], options)
    return places[0] if len(places) == 1 else ask_first(places, {}, options).source


def compared(mine: Told, theirs: Told) -> Comparison:
    """Whether two models have the same tensors with the same bytes."""
    unlike = mine.identity.differences(theirs.identity)
    a, b = mine.status, theirs.status
    if difference := mine.manifest.difference(theirs.manifest):
        return Comparison(mine.name, False, f"the tensors differ: {difference}", unlike)
    for told in (mine, theirs):
        if told.status.state not in SEALED or not told.status.root:
            what = f"{told.source} is {told.status.state}"
            return Comparison(mine.name, None, f"{what}, so its digests say nothing", unlike)
    if (a.digest_algorithm, a.segment_bytes) != (b.digest_algorithm, b.segment_bytes):
        cut = " and ".join(f"{s.digest_algorithm} of {s.segment_bytes} bytes" for s in (a, b))
        return Comparison(mine.name, None, f"the digests cannot be compared: {cut}", unlike)
    if a.root != b.root:
        return Comparison(mine.name, False, f"the bytes differ: root {a.root}, {b.root}", unlike)
    return Comparison(mine.name, True, f"{a.nbytes} bytes, root {a.root}", unlike)


def _shown(found: Comparison, first: str, second: str) -> list[Text | Table]:
    answer, color = {
        True: ("the same weights", "green"),
        False: ("other weights", "red"),
        None: ("cannot be told", "yellow"),
    }[found.same]
    role = f"{found.role}: " if found.role else ""
    line = Text.assemble(plain(role), (answer, f"bold {color}"), "; ", plain(found.why, 400))
    if not found.differences:
        return [line]
    table = Table("field", title="identities differ", title_justify="left")
    table.add_column(plain(first), overflow="fold")
    table.add_column(plain(second), overflow="fold")
    for each in found.differences:
        table.add_row(plain(each.field), plain(each.mine), plain(each.theirs))
    return [line, table]
