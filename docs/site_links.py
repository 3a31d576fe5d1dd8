"""Hooks of mkdocs: what the site has besides the pages in docs/.

The front page is the README, then docs/index.md. Links out of docs/ become plain text: the pages
are written to be read in the repository, where such links work. Mermaid, which draws the diagrams,
is served by the site itself, so that nothing is fetched from elsewhere.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
FRONT = "index.md"
MERMAID = "assets/mermaid.min.js"
SCRIPTS = ROOT / ".cache" / "docs" / "mermaid"
LINK = re.compile(r"(?<![!`])\[([^]\n]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the script."""
    script = SCRIPTS / Path(MERMAID).name
    files.append(File.generated(config, MERMAID, abs_src_path=str(script)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Put the README on the front page, and point links where the site has their target."""
    del config, files
    here = page.file.src_uri
    if here == FRONT:
        readme = README.read_text(encoding="utf-8").replace("](docs/", "](")
        markdown = f"{readme}\n{markdown.replace('# Documentation', '## Documentation', 1)}"
    folder = (DOCS / here).parent
    up = "../" * here.count("/")

    def pointed(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path, hash_mark, anchor = target.partition("#")
        if not path or ":" in path:
            return link[0]
        found = (folder / path).resolve()
        if found == README:
            return f"[{text}]({up}{FRONT}{hash_mark}{anchor})"
        return link[0] if found.is_relative_to(DOCS) else text

    return LINK.sub(pointed, markdown)
