"""Exhaustive search: no order of events offers weights that are not what was published."""

from typing import Final

from netloader.fsm.published import TABLE
from tests.property.published_search import search_life

NEVER: Final = dict.fromkeys(
    ("client", "reader", "doubt", "ask", "known", "relay", "segment", "fence", "write", "secret",
     "withdraw", "gone", "fail", "alarm"),
    0,
)  # fmt: skip
LIVES: Final = {
    "changes and sessions": {"client": 1, "reader": 1, "ask": 2, "fence": 2, "write": 1, "fail": 1},
    "secret writes": {"known": 1, "ask": 2, "doubt": 2, "secret": 1},
    "the end": {
        "client": 2, "reader": 1, "known": 1, "ask": 1, "fence": 1, "withdraw": 1, "gone": 1,
    },
    "a relay": {
        "client": 2, "reader": 1, "relay": 1, "segment": 2, "fence": 1, "gone": 1, "withdraw": 1,
    },
    "a relay that is asked": {
        "relay": 1, "ask": 1, "known": 1, "doubt": 1, "segment": 3, "secret": 1,
    },
    "the end of work": {
        "relay": 1, "known": 1, "ask": 1, "doubt": 1, "fail": 1, "secret": 1, "gone": 2,
    },
    "found behind a fence": {"known": 1, "ask": 1, "secret": 1, "fence": 1, "doubt": 1, "fail": 1},
    "alarms": {"known": 1, "ask": 1, "fence": 2, "alarm": 1, "doubt": 1},
    "found while a session reads": {
        "client": 1, "reader": 1, "known": 1, "secret": 1, "withdraw": 1, "gone": 1,
    },
}  # fmt: skip


def test_no_order_of_events_breaks_a_law_and_every_row_fires(figures: list[str]) -> None:
    found = {name: search_life({**NEVER, **left}, places=1) for name, left in LIVES.items()}
    fired = set().union(*(f.rows for f in found.values()))
    silent = [
        f"{r.source.name} {r.on.__name__} {r.guard} {r.action}" for r in TABLE if id(r) not in fired
    ]
    for name, f in found.items():
        figures.append(f"published, {name}: {f.nodes} nodes, {f.edges} edges, {f.seconds:.2f} s")
    figures.append(f"published: {len(TABLE) - len(silent)} of {len(TABLE)} rows fired")
    assert silent == [], silent
