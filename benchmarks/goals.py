"""The figures that the project wants to reach, and what a run says of each."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import huge
from benchmarks.figures import FanOut, Figures

TOLERANCE = 0.15
"""How far the simulation may be from what was measured with the same number of clients."""
FAST = "xxh3_128"
STRONG = "blake3"


@dataclass(frozen=True, slots=True)
class Goal:
    """One line: what, how much of it is wanted, what there is."""

    what: str
    wanted: str
    figure: str
    verdict: str
    """`reached`, `missed`, or `not measured: ...`."""


def _line(
    what: str, least: float, found: float | None, why_not: str, *, most: bool = False
) -> Goal:
    wanted = f"at most {least:g}" if most else f"at least {least:g}"
    if found is None:
        return Goal(what, wanted, "", f"not measured: {why_not}")
    ok = found <= least if most else found >= least
    return Goal(what, wanted, f"{found:.2f}", "reached" if ok else "missed")


def _share(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or not lower else upper / lower


def goals(figures: Figures) -> list[Goal]:
    """A line for each."""
    parts: tuple[Callable[[Figures], Iterator[Goal]], ...] = (
        *(_tcp, _same_host, _huge, _engines, _small, _handshakes, _fans, _simulated, _gloo),
        *(_beside, _rails),
    )
    return [goal for part in parts for goal in part(figures)]


def _tcp(figures: Figures) -> Iterator[Goal]:
    plain = figures.names("plain socket")
    for memory, wanted in (("touched", ((FAST, 0.95), (STRONG, 0.85))), ("fresh", ((None, 0.5),))):
        bare = figures.best("large", "touched", plain)
        for algorithm, least in wanted:
            names = figures.names(f"netloader tcp, {algorithm or ''}")
            rate = figures.best("large", memory, names)
            words = f"tcp, {memory} memory, 226 tensors, {algorithm or 'any digest'}"
            what = f"{words}: x plain socket (touched)"
            yield _line(what, least, _share(rate, bare), _why(figures, algorithm))
    floor = _share(figures.best("large", "fresh", plain), figures.best("large", "touched", plain))
    if floor is not None:
        what = "the floor of that: a plain socket into fresh memory, x into touched memory"
        yield Goal(what, "", f"{floor:.2f}", "for comparison")


def _why(figures: Figures, algorithm: str | None) -> str:
    """Why there is no figure for a digest."""
    return figures.skipped.get("large", f"this netloader cannot choose the digest {algorithm}")


def _same_host(figures: Figures) -> Iterator[Goal]:
    copied = figures.median("large", "touched", "memcpy")
    for algorithm in (FAST, STRONG):
        rate = figures.median("large", "touched", f"netloader shm, {algorithm}")
        what = f"same host, touched memory, 4 KiB pages, {algorithm}: x memcpy (1 thread)"
        yield _line(what, 0.5, _share(rate, copied), _why(figures, algorithm))


def _huge(figures: Figures) -> Iterator[Goal]:
    rates = {each.way: statistics.median(each.rates) for each in figures.huge}
    what = f"same host, touched memory, huge pages on both sides, {FAST}: x memcpy (1 thread)"
    found = _share(rates.get(huge.WAY), rates.get(huge.COPY))
    yield _line(what, 0.65, found, figures.skipped.get("huge", "not in this run"))


def _engines(figures: Figures) -> Iterator[Goal]:
    loads = {load.way: statistics.median(load.seconds) for load in figures.engines}
    warm, cold = loads.get("ordinary, warm"), loads.get("ordinary, cold")
    why = figures.skipped.get("engines", "no engine was started")
    for way, most in (("netloader shm", 1.2), ("netloader tcp", 1.6)):
        what = f"weights phase in the engine, 1.7 GiB, {way}: x ordinary loader, warm page cache"
        yield _line(what, most, _share(loads.get(way), warm), why, most=True)
        what = f"ordinary loader, cold page cache: x {way}"
        yield _line(what, 2.0, _share(cold, loads.get(way)), why)


def _small(figures: Figures) -> Iterator[Goal]:
    names = figures.names("netloader tcp")
    small = figures.best("small", "touched", names)
    large = figures.best("large", "touched", names)
    what = "20,000 tensors of 50 KB, tcp, touched memory: x the rate of large tensors"
    yield _line(what, 0.7, _share(small, large), "not in this run")


def _handshakes(figures: Figures) -> Iterator[Goal]:
    most = {300: 2.0, 20_000: 15.0, 100_000: 80.0}
    found = {each.tensors: min(each.handshake_ms) for each in figures.handshakes}
    for count, limit in most.items():
        what = f"connection to the request for the first bytes, {count:,} tensors, best round: ms"
        why = figures.skipped.get("handshake", "not in this run")
        yield _line(what, limit, found.get(count), why, most=True)


def _fans(figures: Figures) -> Iterator[Goal]:
    relays = {each.clients: each for each in figures.fan_out if each.shape == "relay"}
    one: FanOut | None = relays.get(1)
    for count, most in ((8, 1.3), (16, 1.5)):
        many = relays.get(count)
        times = many.seconds / one.seconds if many and one else None
        what = f"{count} clients at a source of limited rate, relay: x the time of one"
        yield _line(what, most, times, figures.skipped.get("fan_out", "not in this run"), most=True)


def _simulated(figures: Figures) -> Iterator[Goal]:
    """Whether the simulation can be believed."""
    twins = {(each.clients, each.way): each for each in figures.checked}
    one = {each.shape: each.seconds for each in figures.fan_out if each.clients == 1}
    for each in figures.fan_out:
        twin = twins.get((each.clients, each.shape))
        if each.clients > 1 and each.shape == "relay" and twin and each.shape in one:
            apart = abs(twin.times_one / (each.seconds / one[each.shape]) - 1)
            what = f"simulation beside the measured {each.shape} of {each.clients}: share apart"
            yield _line(what, TOLERANCE, apart, "", most=True)


def _gloo(figures: Figures) -> Iterator[Goal]:
    for workload, words, least in (("large", "226 tensors", 0.9), ("small", "50 KB tensors", 10.0)):
        rate = figures.best(workload, "touched", figures.names("netloader gloo"))
        bare = figures.median(workload, "touched", "bare gloo")
        what = f"gloo, {words}, touched memory: x bare gloo"
        yield _line(what, least, _share(rate, bare), "not in this run")


def _beside(figures: Figures) -> Iterator[Goal]:
    p99 = {each.work: each.p99_ms for each in figures.beside}
    why = figures.skipped.get("beside", "not in this run")
    capped = next((work for work in p99 if work.startswith("tcp, ")), "tcp, capped")
    for work, most in ((capped, 1.1), ("tcp", 1.3), ("shm", 1.3), ("relay", 1.3), ("sealing", 1.3)):
        what = f"p99 of a real engine's step, {work} beside it: x idle"
        yield _line(what, most, _share(p99.get(work), p99.get("idle")), why, most=True)
    for work, words in (("copy", "a loop in C that copies memory"), ("socket", "a plain socket")):
        if floor := _share(p99.get(work), p99.get("idle")):
            yield Goal(
                f"the floor of that: {words} beside it", "", f"{floor:.2f}", "for comparison"
            )


def _rails(figures: Figures) -> Iterator[Goal]:
    share = next((each.both / each.one / 2 for each in figures.rails), None)
    why = figures.skipped.get("rails", "not in this run")
    yield _line("two rails: x the sum", 0.9, share, why)
