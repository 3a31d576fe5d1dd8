"""A terminal's output as a picture."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text


def table_picture(lines: Sequence[str], target: Path) -> None:
    """Draw lines as a terminal shows them, as SVG."""
    console = Console(record=True, width=max(map(len, lines)), file=io.StringIO())
    for line in lines:
        console.print(Text(line), no_wrap=True)
    console.save_svg(str(target), title="netloader top")
