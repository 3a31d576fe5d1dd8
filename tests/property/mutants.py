"""Seeded bugs: what a tired colleague might do to netloader, one at a time.

Each is a pattern that matches once, and the mistake that takes its place. `layer` is the cheapest
that catches it; `python -m tests.property.mutants [WORDS]` finds that out anew.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.property.caches_mutants import CACHES_MUTANTS
from tests.property.digest_mutants import DIGEST_MUTANTS
from tests.property.fetch_mutants import FETCH_MUTANTS
from tests.property.files_mutants import FILES_MUTANTS
from tests.property.layers import L0, L1, L2, L3, L4, L5, LAYERS, SERVED, Mutant
from tests.property.opening_mutants import OPENING_MUTANTS
from tests.property.operating_mutants import OPERATING_MUTANTS
from tests.property.own_disk_mutants import OWN_DISK_MUTANTS
from tests.property.proof_mutants import PROOF_MUTANTS
from tests.property.published_mutants import PUBLISHED_MUTANTS
from tests.property.relay_mutants import RELAY_MUTANTS
from tests.property.request_mutants import REQUEST_MUTANTS
from tests.property.snapshot_mutants import SNAPSHOT_MUTANTS
from tests.property.standby_mutants import STANDBY_MUTANTS
from tests.property.store_mutants import STORE_MUTANTS
from tests.property.template import Template
from tests.property.transport_mutants import TRANSPORT_MUTANTS
from tests.property.wire_mutants import WIRE_MUTANTS
from tests.support.planting import copied, planted

CLIENT: Final = "netloader/fsm/client.py"
SERVER: Final = "netloader/fsm/server.py"
SESSION: Final = "netloader/fsm/session.py"
TABLE: Final = "netloader/fsm/table.py"
MANIFEST: Final = "netloader/fsm/manifest.py"
IDENTITY: Final = "netloader/fsm/identity.py"
LEDGER: Final = "netloader/io/store/ledger.py"
PUBLISHED: Final = "netloader/io/published.py"
CATALOG: Final = "netloader/io/catalog.py"
SERVED_MODEL: Final = "netloader/vllm_plugin/serve/served_model.py"
PLACES: Final = "netloader/vllm_plugin/inspect/places.py"
USAGE_RECORD: Final = "netloader/vllm_plugin/serve/usage_record.py"
MONITOR: Final = "netloader/vllm_plugin/serve/change_monitor.py"
CHANGE: Final = "netloader/vllm_plugin/serve/change.py"
VLLM_WORKER: Final = "netloader/vllm_plugin/serve/worker.py"
WORKER: Final = "netloader/io/worker.py"
HIDDEN: Final = "netloader/io/hidden.py"
MODULE: Final = "netloader/io/store/module.py"
MODULE_STATE: Final = "netloader/io/module_state.py"
SETTLING: Final = "netloader/io/settling.py"
SHARING: Final = "netloader/io/sharing.py"
WATCH: Final = "netloader/io/watch.py"
FILLING: Final = "netloader/io/client.py"


REFUSE: Final = r"    (yield Send\(Reject\(.*\)\))\n    (yield from part\(.*\))\n"

MUTANTS: Final[dict[str, Mutant]] = {
    **FETCH_MUTANTS,
    **TRANSPORT_MUTANTS,
    **DIGEST_MUTANTS,
    **OPENING_MUTANTS,
    **WIRE_MUTANTS,
    **REQUEST_MUTANTS,
    **STORE_MUTANTS,
    **PROOF_MUTANTS,
    **PUBLISHED_MUTANTS,
    **OPERATING_MUTANTS,
    **FILES_MUTANTS,
    **CACHES_MUTANTS,
    **RELAY_MUTANTS,
    **OWN_DISK_MUTANTS,
    **SNAPSHOT_MUTANTS,
    **STANDBY_MUTANTS,
    # the tables
    "a terminal state does not absorb": Mutant(
        L0, TABLE, r"for state in ENDS for", "for state in ENDS[:1] for"
    ),
    "a row is missing: begin": Mutant(L0, CLIENT, r" +row\(V, Begin, .*\n", ""),
    "a row is missing: all was sent, then the connection closes": Mutant(
        L4, CLIENT, r" +row\(T, ConnectionLost, .*\n", ""
    ),
    "a row is missing: the transport cannot open": Mutant(
        L2, CLIENT, r" +row\(V, TransferFailed, .*\n", ""
    ),
    "a row goes to another state": Mutant(
        L2, SERVER, r"row\(V, OfferReady, +V,", "row(V, OfferReady, T,"
    ),
    "two guards are swapped": Mutant(
        L2,
        SERVER,
        r"when=_differs\),\n +row\(H, Hello, +D, _describe, +when=_curious\)",
        "when=_curious),\n        row(H, Hello, D, _describe, when=_differs)",
    ),
    "a guard is turned round": Mutant(
        L2, CLIENT, r"event\.nbytes != session\.nbytes", "event.nbytes == session.nbytes"
    ),
    "a guard is forgotten: done before the server said complete": Mutant(
        L2,
        CLIENT,
        r"T, _go_on, +when=_told_complete\),\n +row\(T, Transferred, +T, _hold\)",
        "T, _go_on)",
    ),
    "a request is taken before an offer was made": Mutant(
        L2, SERVER, r"return session\.opened and allowed", "return allowed"
    ),
    "a server believes `verified` before it has sent": Mutant(
        L2, SERVER, r"return session\.sent and event", "return event"
    ),
    "a server offers its first model, whatever is asked for": Mutant(
        L2,
        "netloader/fsm/server_session.py",
        r"return next\(iter\(of_part or of_role\), 0\)",
        "return 0",
    ),
    "nobody looks at the weights when a client finds other bytes": Mutant(
        L1, SESSION, r" +yield AuditWeights\(\)\n", ""
    ),
    "a lying client has the weights hashed without end": Mutant(
        L4, "netloader/fsm/published.py", r"life\.now \+ max\(PAUSE_S, SHARE \* took\)", "life.now"
    ),
    # the session
    "a deadline is not armed anew": Mutant(
        L1, SESSION, r"if self\.phase != phase:", "if self.state is INITIAL:"
    ),
    "a deadline is armed by every word": Mutant(
        L2, SESSION, r"if self\.phase != phase:", "if self.deadline:"
    ),
    "nothing is aborted on the way out": Mutant(L1, SESSION, r"yield AbortTransfer\(\)", "pass"),
    "the verdict comes before the last word": Mutant(L1, SESSION, REFUSE, r"    \2\n    \1\n"),
    "a client forgets that its weights are dirty": Mutant(
        L1, CLIENT, r"session\.touched = session\.begun = True", "session.begun = True"
    ),
    # identity, manifest, progress
    "a field that only one side has is overlooked": Mutant(
        L4, IDENTITY, r"chain\(self\.hard, .*\)\)", "list(self.hard)"
    ),
    "tensors in another order are the same model": Mutant(
        L3,
        MANIFEST,
        r"self\.tensors != theirs\.tensors:",
        "set(self.tensors) != set(theirs.tensors):",
    ),
    "progress against other digests still counts": Mutant(
        L3,
        MANIFEST,
        r"return self if replace\(.*\) == offered else",
        "return self if self.segment_digests else",
    ),
    "a verified segment is asked for again": Mutant(
        L3, MANIFEST, r" if i not in self\.verified\)", ")"
    ),
    "the last segment counts as a full one": Mutant(
        L2, MANIFEST, r"if last in segments else 0", "if False else 0"
    ),
    "the last tensors are in no segment": Mutant(
        L2, MANIFEST, r"    if extents:\n", "    if room == 0:\n"
    ),
    "a segment is counted twice on resume": Mutant(
        L4, LEDGER, r"clear\(\)\n +self\.verified_bytes = 0", "clear()"
    ),
    "a segment's digest is not compared": Mutant(
        L4, LEDGER, r"if self\._hasher\.hexdigest\(\) != .*:", "if not self._hasher.hexdigest():"
    ),
    # the fence
    "who reads on does not keep memory from being freed": Mutant(
        L4, PUBLISHED, r"lambda: self\._life\.quiet", "lambda: not self._life.clients"
    ),
    "who has an offer does not keep memory from being freed": Mutant(
        L4, PUBLISHED, r"lambda: self\._life\.quiet", "lambda: not self._life.readers"
    ),
    "an evicted session goes on": Mutant(
        L4, PUBLISHED, r"        self\._say\(StopRequested\(Reason\.NOT_SERVING, why\)\)\n", ""
    ),
    "an audit of the owner is not waited for": Mutant(
        L4, PUBLISHED, r"while not compared and self\._comparable\(\)", "while False"
    ),
    "newer weights are offered in a role that was withdrawn meanwhile": Mutant(
        L4, CATALOG, r"            if not old\.renewable:\n +return False\n", ""
    ),
    # what a module holds
    "extra state is not sent": Mutant(
        SERVED, MODULE_STATE, r"if not any\(map\(_adds, root\.modules\(\)\)\):", "if root:"
    ),
    "tensors behind attributes are not looked at": Mutant(
        SERVED, HIDDEN, r" +self\._attributes\(at, part, depth\)\n", "            pass\n"
    ),
    "extra state is taken without a look at what the module shows": Mutant(
        SERVED,
        MODULE,
        r"            if value != other:",
        "            if False and value != other:",
    ),
    "tensors are not hashed again after extra state was given": Mutant(
        SERVED, SETTLING, r"if digests != offer\.segment_digests:", "if not digests:"
    ),
    "memory that may only be read is filled": Mutant(
        SERVED, FILLING, r" +weights\.check_writable\(\)\n", ""
    ),
    "tensors with holes share all that lies between their elements": Mutant(
        SERVED, SHARING, r"return my_run <= distance and .*", "return False"
    ),
    "columns of a matrix never share": Mutant(
        SERVED, SHARING, r"return my_run <= distance and .*", "return True"
    ),
    # a module that is changed while it is served
    "an address that changed is overlooked": Mutant(
        SERVED, WATCH, r"return \(tensor\.data_ptr\(\), ", "return (0, "
    ),
    "a version counter that moved is overlooked": Mutant(
        SERVED, WATCH, r", version_of\(tensor\)\)", ", 0)"
    ),
    "values that were changed are overlooked": Mutant(
        SERVED, WATCH, r"return moved or .*", "return moved"
    ),
    "no look at the model at the end of a transfer": Mutant(
        SERVED,
        WORKER,
        r"if why or not published\.still_used\(\):",
        "if why:",
    ),
    "no look at the model before an offer": Mutant(
        SERVED, WORKER, r"withdrawn or not published\.still_used\(\):", "withdrawn:"
    ),
    "what another source sent is not compared": Mutant(
        SERVED,
        WORKER,
        r"partial\(published\.examine, unasked\)",
        "partial(published.examine, [])",
    ),
    "a late finding puts the old model back on offer": Mutant(
        SERVED,
        CATALOG,
        r"            if old not in self\.published_models:\n +return False\n",
        "",
    ),
    # what is offered is what the engine uses
    "a parameter may be rebound": Mutant(
        L5, PLACES, r"if key_of\(tensor\) != self\.key:", "if tensor.shape != self.key[1]:"
    ),
    "a parameter may be written in place": Mutant(
        L5, PLACES, r"if version_of\(tensor\) != self\.version:", "if False:"
    ),
    "what kernels hold is not looked at": Mutant(
        L5, USAGE_RECORD, r"return self\._error or self\._compare\(\)", "return self._error"
    ),
    "tables may be overwritten": Mutant(
        L5, USAGE_RECORD, r"if now\.tables\.get\(path\) != digest", "if False"
    ),
    "a copy of the kernels may be of another time": Mutant(
        L5, SERVED_MODEL, r"good = not stale and \(.*\)", "good = True"
    ),
    "kernels may get the original as it is": Mutant(
        L5, SERVED_MODEL, r" and not self\._unprocessed\(names, then, now\)", ""
    ),
    "a change nobody announced is the next one's ground": Mutant(
        L5,
        SERVED_MODEL,
        r"self\._compare\(self\._usage\.noted, now, changed\)",
        "self._compare(now, now, changed)",
    ),
    "an engine that has nothing for a moment was looked at": Mutant(
        L5, USAGE_RECORD, r"if self\._over\.is_set\(\) or pauses != self\._pauses:", "if False:"
    ),
    "weights change while they are examined": Mutant(
        L5, USAGE_RECORD, r"for busy in \(self\._examining, self\._reading\):", "for busy in ():"
    ),
    "layers may exchange their memory": Mutant(
        L5, SERVED_MODEL, r"\{\*self\._lost, \*self\._replaced\(\)\}", "self._lost"
    ),
    "one examination is enough": Mutant(L5, MONITOR, r"now == before and ", ""),
    "what was never proven is offered anew": Mutant(
        L5, "netloader/vllm_plugin/serve/live_model.py", r"if not self\.proven:", "if False:"
    ),
    "only the newest port is fenced": Mutant(
        L5,
        VLLM_WORKER,
        r"for server in self\._servers for live",
        "for server in self._servers[-1:] for live",
    ),
    "a second model of a role takes the place of the first": Mutant(
        L5, VLLM_WORKER, r" and role not in s\.roles", ""
    ),
    "a call inside another offers again": Mutant(
        L5, CHANGE, r"if self\._live\.changing:", "if False:"
    ),
}
"""By what is wrong then."""


COPIED: Final = (
    "netloader",
    "docs",
    "tests/support",
    "tests/property",
    "tests/unit/fsm",
    "tests/unit/wire",
    "tests/unit/aio",
    "tests/unit/cli",
    "tests/unit/discovery",
    "tests/unit/files",
    "tests/unit/io",
    "tests/unit/metrics",
    "tests/unit/vllm_plugin",
)


KILLERS: Final = Path(__file__).with_name("killers.json")
"""By mutant, the test that killed it last: it is run first, and the layer only if it passes."""


def nearest_first(file: str, paths: Sequence[str]) -> list[str]:
    """Test files in the order in which they share words with the path of a file."""
    words = {*re.split(r"[/_.]", file)} - {"py"}
    return sorted(paths, key=lambda path: -len(words.intersection(re.split(r"[/_.]", path))))


def failed(copy: Path, template: Template, *tests: str) -> str:
    """The first of some tests that fails in a copy, as pytest names it; "" if all pass.

    Raises:
        AssertionError: tests could not be run; with what pytest said.
    """
    with tempfile.TemporaryDirectory() as place:  # its own: others clean up the common one
        apart = f"--basetemp={place}/t"
        said = template.pytest(copy, ("-q", "-x", "-p", "no:cacheprovider", apart, *tests))
    if found := re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - |$)", said, re.MULTILINE):
        return found[1]
    assert " passed in " in said, said
    return ""


def caught(layer: str, file: str, copy: Path, template: Template, known: str) -> str:
    """What a layer finds wrong with a file of a copy: a test, or "" for nothing."""
    if not LAYERS[layer]:
        command = [sys.executable, "-c", "import netloader.fsm"]
        env = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, check=False)
        return "TableError" if b"TableError" in done.stderr else ""
    paths = nearest_first(file, LAYERS[layer])
    if known and known.partition("::")[0] in paths:
        with contextlib.suppress(AssertionError):  # it was renamed: the layer is asked
            if found := failed(copy, template, known):
                return found
    return failed(copy, template, *paths)


def planted_in(folder: Path, name: str, template: Template, *layers: str) -> tuple[str, str]:
    """Which of some layers is the first to catch a mutant, and with which test; "" for none."""
    known = json.loads(KILLERS.read_bytes()).get(name, "")
    copy = copied(folder, *COPIED)
    shutil.copy(Path(__file__).parents[1] / "conftest.py", copy / "tests")
    _, file, *mistake = MUTANTS[name]
    with planted(copy, file, *mistake):
        found = ((layer, caught(layer, file, copy, template, known)) for layer in layers)
        return next(((layer, test) for layer, test in found if test), ("", ""))


def keep(killers: Mapping[str, str]) -> None:
    """Write which tests kill the mutants that there are."""
    kept = {**json.loads(KILLERS.read_bytes()), **killers}
    text = json.dumps({name: kept[name] for name in MUTANTS if name in kept}, indent=1)
    KILLERS.write_text(text + "\n")


if __name__ == "__main__":  # all, or those whose names have some words; what killed them is kept
    for wanted in [n for n in MUTANTS if all(word in n for word in sys.argv[1:])]:
        with tempfile.TemporaryDirectory() as place, Template() as ready:
            layer_that, test_that = planted_in(Path(place), wanted, ready, *LAYERS)
            print(f"{wanted} <- {layer_that}: {test_that}", flush=True)
            if "::" in test_that:
                keep({wanted: test_that})
