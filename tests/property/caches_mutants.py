"""Seeded bugs of caches: who is believed, under which conditions, and where files go."""

from typing import Final

from tests.property.layers import CACHES, COMPUTED, Mutant

CODE: Final = "netloader/files/caches.py"
HINTS: Final = "netloader/files/hints.py"
PLACING: Final = "netloader/files/placing.py"
REGULAR: Final = "netloader/files/regular.py"
KV_CACHE: Final = "netloader/vllm_plugin/serve/kv_cache.py"
LOAD: Final = "netloader/vllm_plugin/load/caches.py"
ROOT: Final = "netloader/vllm_plugin/patches/cache_root.py"

CACHES_MUTANTS: Final[dict[str, Mutant]] = {
    "compiled code is taken from whom nothing proves": Mutant(
        CACHES, CODE, r"if options\.token is None and options\.tls is None:", "if False:"
    ),
    "compiled code of another vLLM is taken": Mutant(
        CACHES, CODE, r", partial\(check, fingerprint\)", ""
    ),
    "compiled code of other ranks is offered": Mutant(CACHES, CODE, r" and not skip\(n\)", ""),
    "compiled code that changed while it was read is offered": Mutant(
        CACHES, REGULAR, r"if len\(data\) != nbytes:", "if False:"
    ),
    "links among compiled code are offered": Mutant(
        CACHES, CODE, r"stat\.S_ISREG\(found\.st_mode\)", "path.exists()"
    ),
    "hints of another model are taken": Mutant(CACHES, HINTS, r", partial\(check, mine\)", ""),
    "a hint is any text": Mutant(
        CACHES, HINTS, r"        _object\(name, content\)", "        pass"
    ),
    "a cache that is there is overwritten": Mutant(
        CACHES,
        PLACING,
        r"os\.link\(written, last, dst_dir_fd=at, follow_symlinks=False\)",
        "os.replace(written, last, dst_dir_fd=at)",
    ),
    "caches are put where a link leads": Mutant(CACHES, PLACING, r"at\.is_symlink\(\) or ", ""),
    "what a killed process left of caches stays": Mutant(
        CACHES, PLACING, r"shutil\.rmtree\(left, ignore_errors=True\)", "pass"
    ),
    "caches that another process writes are swept away": Mutant(
        CACHES, PLACING, r"fcntl\.flock\(handle, fcntl\.LOCK_EX \| fcntl\.LOCK_NB\)", "pass"
    ),
    "a folder that was swept away before it was locked is used": Mutant(
        CACHES, PLACING, r"        folder\.lstat\(\)\n", ""
    ),
    "a cache has its name before its content is on the disk": Mutant(
        CACHES, REGULAR, r"file\.flush\(\)\n        os\.fsync\(handle\)", "pass"
    ),
    "a KV cache has no margin": Mutant(
        COMPUTED, KV_CACHE, r"int\(hint\.nbytes \* \(1 - MARGIN\)\)", "hint.nbytes"
    ),
    "the size of a KV cache is taken under other conditions": Mutant(
        COMPUTED, KV_CACHE, r"if found := mine\.differences\(.*\):", "if found := ():"
    ),
    "the size of a KV cache is taken where less memory is free": Mutant(
        COMPUTED, KV_CACHE, r"max\(hint\.free_bytes - memory\.free, 0\)", "0"
    ),
    "the size of a KV cache is taken where more of the memory is taken": Mutant(
        COMPUTED, KV_CACHE, r"max\(memory\.taken - hint\.taken_bytes, 0\)", "0"
    ),
    "the size of a KV cache is taken on a device of another size": Mutant(
        COMPUTED, KV_CACHE, r', "device_bytes": str\(self\.total\)', ""
    ),
    "the size of a KV cache is taken where more is kept beside the model": Mutant(
        COMPUTED, LOAD, r", \*\*kept}", "}"
    ),
    "what is kept only with a server is a condition without one": Mutant(
        COMPUTED, LOAD, r"settings\.keeping_at_load if serves else None", "settings.keeping_at_load"
    ),
    "a vLLM that does not say what it computes by does not start": Mutant(
        COMPUTED, LOAD, r"except Exception as error:(?=.*whatever)", "except FilesError as error:"
    ),
    "torch is to keep code where nothing can be written": Mutant(
        COMPUTED,
        ROOT,
        r"    folder\.mkdir\(.*\n    tempfile\.TemporaryFile\(dir=folder\)\.close\(\).*\n",
        "",
    ),
    "options that only take memory are no conditions of a KV cache": Mutant(
        COMPUTED, ROOT, r", \*\*dict\(_options\(every\)\)", ""
    ),
    "variables of allocators are no conditions of a KV cache": Mutant(
        COMPUTED, ROOT, r"n\.startswith\(ALLOCATING\)", "False"
    ),
    "the size of a KV cache that an operator gave is replaced": Mutant(
        COMPUTED, KV_CACHE, r"if hint is None or .*:", "if hint is None:"
    ),
    "a secret of the environment is a condition of caches": Mutant(
        COMPUTED, ROOT, r" if not SECRET\.search\(name\)", ""
    ),
    "where a model lies is a condition of its caches": Mutant(
        COMPUTED, ROOT, r'vars\(part\)\["model"\] = ""', "pass"
    ),
}
