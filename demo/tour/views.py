"""What an operator sees: log lines, series and alerts, as text without what differs in each run."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from demo.paths import CHECKOUT
from demo.servers import DIRECT, DemoError
from demo.tour.board import ask

SENTENCE: Final = re.compile(
    r"\b(INFO|WARNING|ERROR) \d.*?\[\w+\.py:\d+\] (.* \[netloader\.[\w.]+\])$"
)
COLOR: Final = re.compile(r"\x1b\[[\d;]*m")
SAMPLE: Final = re.compile(r"(netloader_\w+(?:\{.*\})?) ([-+.\deE]+)")
LEFT_OUT: Final = re.compile(r"_(bucket|count|sum|created)\b")
"""Of a histogram, and the times at which counters were made."""
PATIENCE_S: Final = 90.0
POLL_S: Final = 0.3

Series = Mapping[str, float]


class UnseenError(DemoError):
    """Something that the tour says is seen was not."""


def wait_for(what: str, there: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """What `there` returns, once that is something."""
    until = time.monotonic() + patience_s
    while not (found := there()):
        if time.monotonic() > until:
            raise UnseenError(f"not seen within {patience_s:.0f} s: {what}")
        time.sleep(POLL_S)
    return found


class Names:
    """Replaces addresses and paths of this run by words that are the same in each."""

    def __init__(self, folder: Path) -> None:
        self._words = {str(folder): "/fleet", f"{CHECKOUT}/": ""}

    def add(self, port: int, name: str) -> None:
        """Call an address of this host by name."""
        self._words[f"127.0.0.1:{port}"] = name

    def in_columns(self, text: str) -> str:
        """As a call, for a line of a table: what follows stays where it is."""
        for word, name in self._words.items():
            text = text.replace(word, name.ljust(len(word)) if ":" in word else name)
        return text

    def __call__(self, text: str) -> str:
        for word in sorted(self._words, key=len, reverse=True):
            text = re.sub(rf"{re.escape(word)}(?!\d)", self._words[word], text)
        text = re.sub(r"127\.0\.0\.1:\d+", "CLIENT:PORT", text)
        return re.sub(r"\b127\.0\.0\.1\b", "HOST", text)


def sentences(log: Path, names: Names) -> list[str]:
    """Our lines of a log of `vllm serve`, without what vLLM puts before each."""
    if not log.exists():
        return []
    text = COLOR.sub("", log.read_text(encoding="utf-8", errors="replace"))
    found = (SENTENCE.search(line) for line in text.splitlines())
    return [names(f"{match[1]} {match[2]}") for match in found if match]


def series_of(url: str) -> Series:
    """The series of netloader on a page, without histograms; empty if there is no page."""
    try:
        with DIRECT.open(url, timeout=10.0) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found = (SAMPLE.fullmatch(line) for line in text.splitlines())
    return {m[1]: float(m[2]) for m in found if m and not LEFT_OUT.search(m[1])}


def changed(before: Series, now: Series, names: Names) -> list[str]:
    """The series that differ, and how."""
    lines = []
    for name, value in now.items():
        old = before.get(name, 0.0)
        if value != old:
            lines.append(
                names(f"{name} {old:g} -> {value:g}" if name in before else _new(name, value))
            )
    return sorted(lines)


def _new(name: str, value: float) -> str:
    return f"{name} {value:g}"


def firing(url: str) -> Iterator[str]:
    """The alerts of a Prometheus that fire now."""
    for alert in ask(url, "alerts")["alerts"]:
        if alert["state"] == "firing":
            labels = dict(alert["labels"])
            name, severity = labels.pop("alertname"), labels.pop("severity")
            where = ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
            yield f"{name} ({severity}; {where}): {alert['annotations']['summary']}"


def lacking(lines: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The patterns that match no line."""
    return [p for p in patterns if not any(re.search(p, line) for line in lines)]
