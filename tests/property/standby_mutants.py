"""Seeded bugs of instances on standby: answered too early, filled in part, filled by anybody."""

from typing import Final

from tests.property.layers import STANDBY, Mutant

AWAITING: Final = "netloader/vllm_plugin/load/awaiting.py"
CORE: Final = "netloader/vllm_plugin/patches/core.py"
FILL: Final = "netloader/cli/fill.py"
GATE: Final = "netloader/vllm_plugin/front/gate.py"
INSTANCE: Final = "netloader/vllm_plugin/front/instance.py"
LOAD_FORMAT: Final = "netloader/vllm_plugin/config/load_format.py"
ON_DEMAND: Final = "netloader/vllm_plugin/patches/on_demand.py"
PROOF: Final = "netloader/secure/request_proof.py"
RANK: Final = "netloader/vllm_plugin/load/standby.py"
RAW: Final = "netloader/vllm_plugin/load/raw.py"
RELOAD: Final = "netloader/vllm_plugin/load/reload.py"
ROOM: Final = "netloader/vllm_plugin/load/room.py"
SOURCES: Final = "netloader/vllm_plugin/config/sources.py"
WAITING: Final = "netloader/vllm_plugin/config/waiting.py"
WORKER: Final = "netloader/vllm_plugin/patches/worker_methods.py"

STANDBY_MUTANTS: Final[dict[str, Mutant]] = {
    "an instance on standby answers before it is filled": Mutant(
        STANDBY, GATE, r"path in ALWAYS or await instance\.ask\(\)", "True"
    ),
    "an instance on standby takes a program's request before it is filled": Mutant(
        STANDBY, INSTANCE, r"        if not self\.filled:\n            self\.refuse\(\)\n", ""
    ),
    "nothing is put before the API of an instance on standby": Mutant(
        STANDBY, ON_DEMAND, r"            guard\(config\)\n", "            pass\n"
    ),
    "one rank's failure to be filled is reported as success": Mutant(
        STANDBY, INSTANCE, r"all\(each\[\"filled\"\]", 'any(each["filled"]'
    ),
    "a rank is filled though another is not": Mutant(
        STANDBY, RANK, r"if why or not together:", "if why:"
    ),
    "a fill whose reload fails counts": Mutant(
        STANDBY, RANK, r"    def filled\(\) -> None:\n        (remember\(.*\))\n",
        r"    \1\n\n    def filled() -> None:\n",
    ),
    "whoever asks may name the source of an instance on standby": Mutant(
        STANDBY, GATE, r"if source and not proven:", "if False:"
    ),
    "a client that leaves before it has named a source starts a fill": Mutant(
        STANDBY, GATE, r'if message\["type"\] != "http\.request":', "if False:"
    ),
    "a proof of a request holds for ever": Mutant(
        STANDBY, PROOF, r"if abs\(now_s - time_s\) > WINDOW_S:", "if False:"
    ),
    "a proof of a request does not cover its body": Mutant(
        STANDBY, PROOF, r"sha256\(self\.body\)", "sha256()"
    ),
    "a proof of a request does not cover its time": Mutant(
        STANDBY, PROOF, r"self\.path, time_s, hashlib", "self.path, 0, hashlib"
    ),
    "any proof of a request is good": Mutant(
        STANDBY, PROOF, r"return any\(\[hmac.*\]\)", "return bool(right)"
    ),
    "the command shows the token of the fleet": Mutant(
        STANDBY, FILL, r"HttpRequest\(.*\)\.prove\(.*\)", 'f"Bearer {token.reveal()}"'
    ),
    "a written address that answers has an instance on standby filled": Mutant(
        STANDBY, AWAITING, r"if not isinstance\(finder, Address\)", "if True"
    ),
    "a folder that is not whole has an instance on standby filled": Mutant(
        STANDBY, AWAITING, r"open_part\(part\)\.store\.close\(\)", "pass"
    ),
    "an instance on standby does not look at a folder again": Mutant(
        STANDBY, AWAITING, r"self\._strange\.get\(folder\) == cards", "folder in self._strange"
    ),
    "an instance on standby fills itself when one rank has found a source": Mutant(
        STANDBY, INSTANCE, r"not all\(found\)", "not any(found)"
    ),
    "a layer that a failed reload left half done is taken for filled": Mutant(
        STANDBY, RELOAD, r"        _put_back\(model\)\n", ""
    ),
    "a layer that still has its placeholders packed is taken for filled": Mutant(
        STANDBY, RANK, r"if left:", "if False:"
    ),
    "a fill begins where an aborted transfer may still write": Mutant(
        STANDBY, ROOM, r"        self\.check\(\)\n", ""
    ),
    "weights are received into memory that was given back": Mutant(
        STANDBY, RAW, r" or storage\.nbytes\(\) != self\.nbytes", ""
    ),
    "settings in a file cannot have an instance wait": Mutant(
        STANDBY, LOAD_FORMAT, r"frozenset\(\{STANDBY, \"CONFIG_FILE\"\}\)", "frozenset({STANDBY})"
    ),
    "an instance on standby has replicas, of which one is filled": Mutant(
        STANDBY, WAITING, r"if replicas > 1:", "if False:"
    ),
    "a front end without a gate serves an instance on standby": Mutant(
        STANDBY, WAITING, r"if getattr\(envs, \"VLLM_USE_RUST_FRONTEND\", False\):", "if False:"
    ),
    "an engine takes a request that has passed no other guard": Mutant(
        STANDBY, CORE, r"if vars\(engine\)\.get\(LACKS\):", "if False:"
    ),
    "an engine in a process of its own takes any request": Mutant(
        STANDBY, ON_DEMAND, r"    core\.install\(.*\)\n", ""
    ),
    "an engine takes requests when one rank of several has weights": Mutant(
        STANDBY, CORE, r"all\(each\[\"filled\"\]", 'any(each["filled"]'
    ),
    "a named source is for the first replica only": Mutant(
        STANDBY, SOURCES, r"if len\(texts\) == 1:", "if len(texts) == 1 and ranks > 1:"
    ),
    "a rank that was to wait, and holds nothing, counts as filled": Mutant(
        STANDBY, WORKER, r"filled = standby_of\(worker\.load_config\) is None", "filled = True"
    ),
    "a rank whose settings are gone counts as filled": Mutant(
        STANDBY, WORKER, r"filled, why = False, ", "filled, why = True, "
    ),
}  # fmt: skip
