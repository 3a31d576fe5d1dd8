"""Seeded bugs of the files of a model's folder: names, sizes, kinds, the cache, the command."""

from typing import Final

from tests.property.layers import FOLDERS, Mutant

RULES: Final = "netloader/files/rules.py"
FOLDER: Final = "netloader/files/folder.py"
REGULAR: Final = "netloader/files/regular.py"
CACHE: Final = "netloader/files/cache.py"
FETCHING: Final = "netloader/files/fetching.py"
RUN: Final = "netloader/cli/run.py"
WORDS: Final = "netloader/cli/words.py"
CREDENTIALS: Final = "netloader/cli/credentials.py"

FILES_MUTANTS: Final[dict[str, Mutant]] = {
    "a file climbs out of its folder": Mutant(
        FOLDERS, RULES, r"not all\(map\(PART\.fullmatch, parts\)\) or ", ""
    ),
    "a file's name is read as far as it is plain": Mutant(
        FOLDERS, RULES, r"PART\.fullmatch", "PART.match"
    ),
    "the name of a tokenizer hides another kind": Mutant(
        FOLDERS, RULES, r"OF_A_VERSION\.fullmatch", "OF_A_VERSION.match"
    ),
    "code is taken without trust": Mutant(
        FOLDERS, RULES, r"DATA: Final = Rules\(\)", "DATA: Final = Rules(DATA_SUFFIXES | {CODE})"
    ),
    "ten gigabytes of config are taken": Mutant(
        FOLDERS, RULES, r"0 <= nbytes <= self\.most_file_bytes", "0 <= nbytes"
    ),
    "many large files are taken": Mutant(
        FOLDERS, RULES, r"specs\)\) > self\.most_bytes", "specs)) < 0"
    ),
    "any number of files is taken": Mutant(
        FOLDERS, RULES, r"if len\(specs\) > self\.most_files", "if False"
    ),
    "two files have one name": Mutant(
        FOLDERS, RULES, r"clash_in\(spec\.name for spec in specs\)", '""'
    ),
    "a file is no plain bytes": Mutant(
        FOLDERS, RULES, r"if not flaw and spec != spec_of\(.*\):", "if False:"
    ),
    "files are received before they are looked at": Mutant(
        FOLDERS, FETCHING, r"    rules\.check\(manifest\)\n", ""
    ),
    "files are kept though they were changed on their way": Mutant(
        FOLDERS, FETCHING, r"if not outcome\.ok:", "if False:"
    ),
    "a name of a model is any text": Mutant(
        FOLDERS, FETCHING, r" or not name\.isprintable\(\)", ""
    ),
    "a folder of the cache is believed": Mutant(
        FOLDERS, CACHE, r"if changed is not None:", "if False:"
    ),
    "a link of the cache is followed": Mutant(
        FOLDERS, REGULAR, r"os\.O_RDONLY \| os\.O_NOFOLLOW", "os.O_RDONLY"
    ),
    "a link out of the model's folder is followed": Mutant(
        FOLDERS, FOLDER, r"if inside and file", "if file"
    ),
    "vLLM may run code of the source without trust": Mutant(
        FOLDERS, RUN, r"\[\] if wanted\.trust else \[REFUSE_CODE\]", "[]"
    ),
    "settings in a file of vLLM's options are overridden": Mutant(
        FOLDERS,
        WORDS,
        r"values = taken\(\(\*self\.filed, \*self\.words\)",
        "values = taken((*self.words,)",
    ),
    "an option of vLLM that is cut short is overridden": Mutant(
        FOLDERS, WORDS, r"if name not in READ and \(full := next\(.*\):", "if False:"
    ),
    "a field of vLLM's option behind a dot is overridden": Mutant(
        FOLDERS, WORDS, r"if name in READ and dot:", "if False:"
    ),
    "a word of the command loses to a file of vLLM's options": Mutant(
        FOLDERS, WORDS, r"return values\[-1\] if values", "return values[0] if values"
    ),
    "an instance that a file forbids to wait is started on standby": Mutant(
        FOLDERS, "netloader/cli/standby.py", r"if not settings_of\(extra\)\.standby:", "if False:"
    ),
    "a password is among the arguments of vLLM": Mutant(
        FOLDERS, WORDS, r"json\.dumps\(without_credentials\(extra\)\)", "json.dumps(extra)"
    ),
    "a file with a password that others can read is used": Mutant(
        FOLDERS, CREDENTIALS, r"return private and read_regular", "return read_regular"
    ),
    "the settings of a file are lost to that of the passwords": Mutant(
        FOLDERS, CREDENTIALS, r"\{\*\*held, \*\*above\}", "held"
    ),
    "a key of vLLM is written out": Mutant(FOLDERS, WORDS, r'"\*\*\*" if hidden else word', "word"),
}
