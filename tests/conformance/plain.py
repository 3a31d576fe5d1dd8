"""The transport of docs/embed/transport.md, which any process can import from here."""

import re
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).parents[2] / "docs" / "embed" / "transport.md"
BLOCKS: Final = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
(SOURCE,) = (block for block in BLOCKS if "class Plain:" in block)
NAMES: Final[dict[str, Any]] = {"__name__": "plain"}
exec(compile(SOURCE, PAGE.name, "exec"), NAMES)

Plain = NAMES["Plain"]
PlainAttachment = NAMES["PlainAttachment"]
PlainSender = NAMES["PlainSender"]
PlainReceiver = NAMES["PlainReceiver"]
PLAIN = NAMES["PLAIN"]
