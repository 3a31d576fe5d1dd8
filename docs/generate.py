"""Write the generated parts of the docs, or check that they are fresh.

`python docs/generate.py` writes docs/protocol/states.md and docs/embed/reference.md whole, and the
tables between `<!-- generated: X -->` and `<!-- end -->` of the other pages; with `--check` it only
compares.
"""

import re
import sys
from pathlib import Path

import reference

from netloader.cli.codes import render_codes
from netloader.fsm.render import page
from netloader.log import render_catalogue
from netloader.metrics.catalogue import render_series
from netloader.vllm_plugin.config.settings import render_fields

HERE = Path(__file__).parent
PARTS = {
    "fields": ("operate/vllm.md", render_fields),
    "events": ("operate/operations.md", render_catalogue),
    "series": ("operate/metrics.md", render_series),
    "codes": ("operate/command.md", render_codes),
}


def pages() -> dict[Path, str]:
    """Every page with a generated part, as it should be."""
    wanted = {
        HERE / "protocol" / "states.md": page(),
        HERE / "embed" / "reference.md": reference.page(),
    }
    for name, (file, render) in PARTS.items():
        path = HERE / file
        marks = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = render().strip()
        wanted[path] = marks.sub(lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", path.read_text())
    return wanted


def main() -> int:
    """Write, or with --check answer 1 and name the stale pages."""
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            sys.stderr.write(f"{path.name} is stale; run `make docs`\n")
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
