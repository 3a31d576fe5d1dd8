"""Look sources up, before a fetch and while it runs.

All finders are asked at the same time, each on a thread of its own, because neither a resolver nor
a registry can be interrupted. What one has not said in time is left out, and it is not asked again
before it has answered. Of what was found, only sources that accept a connection are handed out:
those on this host first, then those with the least to do, then the fastest, then by chance.
"""

import queue
import random
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from netloader.config import Endpoint
from netloader.discovery.base import Candidate, Finder, Found, Key, why
from netloader.discovery.names import Address
from netloader.discovery.probe import reachable
from netloader.io.clock import monotonic
from netloader.log import Logger, emit

ENOUGH = 16
"""Sources that one look hands out: a client asks a few at the same time."""
PROBE_S = 1.0
"""How long a look tries to connect: within a data centre an answer takes a millisecond."""
REFRESH_S = 2.0
"""Seconds between two looks while a fetch runs, give or take a quarter."""

Answer = tuple[Finder, Found | None, str]
"""A finder, and what it found or why it did not answer."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The result of one look."""

    sources: tuple[Endpoint, ...] = ()
    """In the order in which to ask them."""
    unreachable: tuple[Endpoint, ...] = ()
    """Some of those that were found, but accept no connection."""
    problems: tuple[str, ...] = ()
    """Which finders did not answer, and why."""


class Lookup:
    """The finders of one client. Safe to use from any thread.

    `host` is as in `Candidate`; `own` are places of this process, which are never handed out.
    `ordered` may put those that failed last.
    """

    def __init__(
        self,
        finders: Sequence[Finder],
        key: Key,
        host: str,
        timeout_s: float,
        logger: Logger,
        own: Callable[[], Collection[Endpoint]] = tuple,
        ordered: Callable[[Sequence[Endpoint]], Sequence[Endpoint]] = tuple,
    ) -> None:
        self._finders = tuple({finder.name: finder for finder in finders}.values())
        self._key = key
        self._own = own
        self._ordered = ordered
        self._lock = threading.Lock()
        self._looks = 0
        self._host = host
        self._timeout_s = timeout_s
        self._logger = logger
        self._asked: set[str] = set()
        """The names of finders that have not answered yet."""
        self._told: set[str] = set()
        """The names of finders whose silence, or whose garbage, was logged."""
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def look(self) -> Looked:
        """What there is now. Blocks for the time-out of the finders, and PROBE_S; never raises."""
        with self._lock:
            return self._look(monotonic())

    def _look(self, begun: float) -> Looked:
        own = self._own()
        found, problems = self._ask(begun + self._timeout_s)
        written = [finder.endpoint for finder in self._finders if isinstance(finder, Address)]
        candidates = [c for finder in self._finders for c in self._sorted(found.get(finder.name))]
        known = dict.fromkeys(c.endpoint for c in candidates)
        places = self._ordered([place for place in known if place not in own])
        new = [place for place in places if place not in written]
        open_ = reachable(new, ENOUGH, PROBE_S)
        sources = tuple(place for place in places if place in written or place in open_)
        shut = tuple(place for place in new if place not in open_)[:ENOUGH]
        looked = Looked(sources, shut if not sources else (), tuple(problems))
        self._tell(looked, len(places), monotonic() - begun)
        return looked

    def subscribe(self, found: Callable[[Sequence[Endpoint]], None]) -> Callable[[], None]:
        """Call `found` with the sources of now, again and again, on a thread of this lookup.

        Returns:
            What ends that; afterwards `found` is called at most once more.
        """
        stopped = threading.Event()

        def again() -> None:
            while not stopped.wait(REFRESH_S * random.uniform(0.75, 1.25)):  # noqa: S311 - no secret
                sources = self.look().sources
                if not stopped.is_set():
                    found(sources)

        threading.Thread(target=again, name="netloader-lookup", daemon=True).start()
        return stopped.set

    def _ask(self, end: float) -> tuple[dict[str, Found], list[str]]:
        """The answers that come in time, by the name of the finder, and why others do not."""
        for finder in self._finders:
            if finder.name not in self._asked:
                self._asked.add(finder.name)
                ask = threading.Thread(
                    target=self._find, args=(finder,), name="netloader-find", daemon=True
                )
                ask.start()
        found: dict[str, Found] = {}
        problems: list[str] = []
        while self._asked:
            try:
                finder, answer, why = self._answers.get(timeout=max(0.0, end - monotonic()))
            except queue.Empty:
                break
            self._asked.discard(finder.name)
            if answer is None:
                problems.append(self._failed(finder.name, why))
                continue
            found[finder.name] = answer
            self._heard(finder.name, answer)
        late = f"no answer within {self._timeout_s:g} s"
        return found, problems + [self._failed(name, late) for name in sorted(self._asked)]

    def _find(self, finder: Finder) -> None:
        """Ask one finder. Whatever it raises, it has found nothing."""
        try:
            answer: Answer = (finder, finder.find(self._key, self._timeout_s), "")
        except Exception as error:  # noqa: BLE001 - libraries raise what they like
            answer = (finder, None, why(error))
        self._answers.put(answer)

    def _sorted(self, found: Found | None) -> list[Candidate]:
        """Those of one finder, the best first."""
        candidates = [*found.candidates] if found else []
        random.shuffle(candidates)  # clients that start together do not all ask the same one
        return sorted(candidates, key=lambda c: (c.host != self._host, c.load, -c.rate))

    # -- what is logged --------------------------------------------------------------------------

    def _failed(self, name: str, why: str) -> str:
        if name not in self._told:
            self._told.add(name)
            fields = {"netloader.finder": name, "netloader.detail": why}
            emit(self._logger, "netloader.discovery.failed", fields)
        return f"{name}: {why}"

    def _heard(self, name: str, found: Found) -> None:
        if found.unreadable and name not in self._told:
            self._told.add(name)
            many = f"{found.unreadable} of its entries cannot be read, and are left out"
            fields = {"netloader.finder": name, "netloader.detail": many}
            emit(self._logger, "netloader.discovery.odd", fields)
        elif not found.unreadable:
            self._told.discard(name)

    def _tell(self, looked: Looked, found: int, seconds: float) -> None:
        fields = {
            "netloader.finder": ", ".join(finder.name for finder in self._finders),
            "netloader.found": found,
            "netloader.sources": ", ".join(map(str, looked.sources)),
            "netloader.duration_s": round(seconds, 3),
        }
        level: Literal["debug", "info"] = "debug" if self._looks else "info"
        self._looks += 1
        emit(self._logger, "netloader.discovery.looked", fields, level=level)
