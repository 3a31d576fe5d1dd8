"""Seeded bugs of stores and the ledger; the others are in mutants.py."""

from typing import Final

from tests.property.layers import L4, SERVED, Mutant

LEDGER: Final = "netloader/io/store/ledger.py"
MODULE: Final = "netloader/io/store/module.py"
RESUMING: Final = "netloader/io/store/resuming.py"
HEADERS: Final = "netloader/io/store/headers.py"
FOLDERS: Final = "netloader/io/store/folders.py"
WATCH: Final = "netloader/io/watch.py"

STORE_MUTANTS: Final[dict[str, Mutant]] = {
    "two roots are mixed": Mutant(L4, LEDGER, r"if self\._leases:", "if False:"),
    "a late byte of a dropped source lands on a verified segment": Mutant(
        L4, LEDGER, r"if self\._places\.setdefault\(index, writer\) is not writer:", "if False:"
    ),
    "a duplicate is written over a verified segment": Mutant(
        L4, LEDGER, r"if index in self\._verified or index in self\._places:", "if False:"
    ),
    "a dropped source still gets memory": Mutant(
        L4,
        LEDGER,
        r"        self\.lease\.check\(\)\n        return self\._in_place",
        "        return self._in_place",
    ),
    "what waits in scratch memory is forgotten": Mutant(
        L4, LEDGER, r"if spare is not None:\n            with", "if False:\n            with"
    ),
    "what is read is overwritten with other weights": Mutant(
        L4, LEDGER, r"        self\._audience\.leave\(\)\n", ""
    ),
    "an outcome that is handed back is believed": Mutant(
        L4, RESUMING, r" if digest == before\.segment_digests\[s\.index\]", ""
    ),
    "hashing goes on when the call has to end": Mutant(
        L4, RESUMING, r"return \(\) if stopped\(\) else", "return () if False else"
    ),
    "half a tensor that is put together apart is forgotten on resume": Mutant(
        L4,
        MODULE,
        r"if self\._flat\[index\] or whole:",
        "if True:",
    ),
    "bytes between the tensors of a file are not noticed": Mutant(
        L4, HEADERS, r"if start != reached or", "if"
    ),
    "a folder is seen before it is whole": Mutant(
        L4, FOLDERS, r"self\._hidden = .*", "self._hidden = folder"
    ),
    "a tensor in another memory order is written to a file as it is": Mutant(
        L4, HEADERS, r"return like\.is_contiguous\(\) or not is_dense\(like\)", "return True"
    ),
    "memory beside a writable mapping counts as in it": Mutant(
        SERVED, "netloader/io/memory.py", r"if first <= begin and end <= last:", "if last:"
    ),
    "a change of a state dict is not noticed": Mutant(
        SERVED, WATCH, r"None if isinstance\(weights, Store\) else TensorUsage\(weights\)", "None"
    ),
}
