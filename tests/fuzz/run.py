"""Fuzz, replay, shrink and keep: `make fuzz` is the first of them.

python -m tests.fuzz.run fuzz [--seconds 60] [--target sessions]   search until stopped
python -m tests.fuzz.run replay TARGET FILE...                     run some inputs once
python -m tests.fuzz.run shrink TARGET FILE                        cut a finding down
python -m tests.fuzz.run keep                                      add to the corpus what is new
"""

import argparse
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = Path("tests/fuzz/corpus")
GROWN: Final = Path(".cache/fuzz/grown")
FINDINGS: Final = Path(".cache/fuzz/findings")
TARGETS: Final = ("stream", "documents", "sessions")
ROUND_S: Final = 60.0
"""How long one target is searched before it is the next one's turn."""
SHOWN_EVERY_S: Final = 5.0
LONGEST: Final = {"stream": 1024, "documents": 4096, "sessions": 4096}
"""Bytes of one input: every idea fits, and a thousand and more are tried in a second."""
SLOWEST_S: Final = 10
MOST_MB: Final = 2048
COVERAGE: Final = re.compile(r"#\d+\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
RUNS: Final = re.compile(r"runs: (\d+)|Done (\d+) runs")


class Search:
    """One target under the fuzzer for some seconds, in a process of its own."""

    def __init__(self, target: str, seconds: float) -> None:
        self.target = target
        self.runs = self.coverage = self.corpus = 0
        self.first_coverage = 0
        self._began = self._shown = time.monotonic()
        self._said: list[str] = []
        grown, kept = GROWN / target, CORPUS / target
        for folder in (grown, FINDINGS):
            folder.mkdir(parents=True, exist_ok=True)
        self._artifacts = FINDINGS / f"{target}-"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.fuzz.engine", target),
                f"-max_total_time={max(1, round(seconds))}",
                f"-max_len={LONGEST[target]}",
                f"-timeout={SLOWEST_S}",
                f"-rss_limit_mb={MOST_MB}",
                f"-artifact_prefix={self._artifacts}",
                *(str(grown), str(kept)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def watch(self) -> bool:
        """Show how it goes, until it ends; False when something was found."""
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._read(line)
        finally:
            self._process.terminate()
            code = self._process.wait()
            self._process.stdout.close()
        self._show()
        if code:
            self._report()
        return not code

    def _read(self, line: str) -> None:
        if found := COVERAGE.match(line):
            self.coverage, _, self.corpus = map(int, found.groups())
            if "\tINITED" in line:
                self.first_coverage, self._began = self.coverage, time.monotonic()
        elif found := RUNS.match(line):
            self.runs = int(found[1] or found[2])
        elif not line.startswith(("INFO:", "WARNING:")):
            self._said.append(line)
        if time.monotonic() > self._shown + SHOWN_EVERY_S:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        lasted = max(self._shown - self._began, 0.001)
        say(
            f"{self.target:9}  {lasted:5.0f} s  {self.runs:9,} runs  "
            f"{self.runs / lasted:7,.0f}/s  corpus {self.corpus:5,}  "
            f"coverage {self.coverage:5,} (at first {self.first_coverage:,})"
        )

    def _report(self) -> None:
        text = "".join(self._said)
        found = re.search(r"Test unit written to (\S+)", text)
        where = text.find("=== Uncaught")
        say(f"\nFOUND by target {self.target} after {self.runs:,} runs:\n")
        say((text[where:] if where >= 0 else text)[-3000:])
        if found:
            say(f"input:   {found[1]}")
            say(f"replay:  {sys.executable} -m tests.fuzz.run replay {self.target} {found[1]}")
            say(f"shrink:  {sys.executable} -m tests.fuzz.run shrink {self.target} {found[1]}")
            say(f"then keep it, named after what it is, in {CORPUS / self.target}/\n")


def say(text: str) -> None:
    """One line for whoever watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fuzz(seconds: float | None, targets: tuple[str, ...]) -> int:
    """Search every target in turn, `seconds` in all or until stopped; 1 for a finding."""
    lasts = f"for {seconds:g} s" if seconds else "until Ctrl-C ends it"
    say(f"fuzzing {', '.join(targets)} {lasts}")
    sound, searches = True, list[Search]()
    try:
        for target, span in turns(seconds, targets):
            searches.append(Search(target, span))
            sound &= searches[-1].watch()
            if not sound and not seconds:
                break
    except KeyboardInterrupt:
        say("stopped")
    runs = sum(search.runs for search in searches)
    say(f"{runs:,} runs, {'nothing found' if sound else 'see what was found above'}")
    return 0 if sound else 1


def turns(seconds: float | None, targets: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Whose turn it is, and for how long."""
    if seconds:
        yield from ((target, seconds / len(targets)) for target in targets)
        return
    while True:
        yield from ((target, ROUND_S) for target in targets)


def replay(target: str, files: list[Path]) -> int:
    """Run inputs once, with the whole traceback of each that fails."""
    from tests.fuzz import targets

    failed = 0
    for file in files:
        try:
            targets.TARGETS[target](file.read_bytes())
        except Exception:  # whatever a target raises is what we want to see
            failed += 1
            say(f"{file}: broken\n{traceback.format_exc()}")
        else:
            say(f"{file}: holds")
    return 1 if failed else 0


def main() -> int:
    """Do what the command line says, from the top of the checkout."""
    from tests.fuzz.shrink import keep_new, shrink_finding

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("fuzz")
    part.add_argument("--seconds", type=float)
    part.add_argument("--target", choices=TARGETS, action="append")
    for name in ("replay", "shrink"):
        part = parts.add_parser(name)
        part.add_argument("target", choices=TARGETS)
        part.add_argument("files", type=Path, nargs="+")
    parts.add_parser("keep")
    told = parser.parse_args()
    match told.part:
        case "fuzz":
            return fuzz(told.seconds, tuple(told.target or TARGETS))
        case "replay":
            return replay(told.target, told.files)
        case "shrink":
            for file in told.files:
                say(f"{shrink_finding(told.target, file)}")
        case "keep":
            for file in keep_new(ROOT / CORPUS, ROOT / GROWN):
                say(f"new: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
