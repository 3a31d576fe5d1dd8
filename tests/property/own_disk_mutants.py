"""Seeded bugs of weights on the own disk: saved over others, used unproven, preferred blindly."""

from typing import Final

from tests.property.layers import L4, OWN_DISK, Mutant

DESCRIBE: Final = "netloader/io/describe.py"
FETCH: Final = "netloader/fsm/fetch.py"
SAVING: Final = "netloader/io/saving.py"
OWN_FOLDER: Final = "netloader/io/own_folder.py"
FOLDERS: Final = "netloader/vllm_plugin/load/folders.py"

OWN_DISK_MUTANTS: Final[dict[str, Mutant]] = {
    "weights are saved that are not those of the digests": Mutant(
        OWN_DISK,
        SAVING,
        r"    except TransferError as error:\n",
        "    except TransferError:\n"
        "        return Saved(folder, 1, 0.0)\n"
        "    except ValueError as error:\n",
    ),
    "a folder that cannot be used stays": Mutant(
        OWN_DISK, SAVING, r"_holds\(folder, card\)", "folder.exists()"
    ),
    "a folder stays whose bytes were refused": Mutant(
        OWN_DISK, SAVING, r"folder\.resolve\(\) not in damaged and ", ""
    ),
    "a load forgets that bytes of a folder were refused": Mutant(
        OWN_DISK,
        "netloader/vllm_plugin/load/plan.py",
        r"folders=\(\), damaged=damaged\)",
        "folders=())",
    ),
    "a card has no root while a client is in doubt": Mutant(
        OWN_DISK, SAVING, r", root=root_digest\(digests\)\)", ")"
    ),
    "the card of the same weights stays as it was": Mutant(
        OWN_DISK, SAVING, r"card\.write\(folder\)", "pass"
    ),
    "a save fails by an older folder that stays": Mutant(
        OWN_DISK,
        SAVING,
        r"            except OSError as error:\n",
        "            except KeyError as error:\n",
    ),
    "the name of a saved folder may begin with a dot": Mutant(
        OWN_DISK,
        "netloader/vllm_plugin/serve/saving.py",
        r'\[-NAME_CHARS:\]\.strip\("\.-"\)',
        '.strip(".-")[-NAME_CHARS:]',
    ),
    "the disk is filled to the last byte": Mutant(
        OWN_DISK, SAVING, r"if free < nbytes \+ SPARE_BYTES:", "if free < nbytes:"
    ),
    "a folder of the same bytes is written again": Mutant(
        OWN_DISK, SAVING, r"_holds\(folder, card\)", "False"
    ),
    "folders of other models are removed": Mutant(
        OWN_DISK, SAVING, r'glob\(f"\{name\}-\*/\{CARD\}"\)', 'glob(f"*/{CARD}")'
    ),
    "two processes save the same at once": Mutant(
        OWN_DISK, SAVING, r"fcntl\.flock\(lock, .*\)", "pass"
    ),
    "a folder that differs from a peer is used": Mutant(
        OWN_DISK, OWN_FOLDER, r"if ours\.root != theirs\.root:", "if False:"
    ),
    "a folder that cannot be compared with a peer is used": Mutant(
        OWN_DISK, OWN_FOLDER, r"if cut != \(.*\):", "if False:"
    ),
    "a folder is asked before a peer that was put off": Mutant(
        OWN_DISK, DESCRIBE, r"left or slow or folders", "left or folders or slow"
    ),
    "any process of the host can read a folder": Mutant(
        OWN_DISK, OWN_FOLDER, r"Secret\(secrets\.token_hex\(TOKEN_BYTES\)\)", "None"
    ),
    "another rank's folder is taken": Mutant(
        OWN_DISK, FOLDERS, r"if key_of\(card\.identity\) == key_of\(model\.early\):", "if True:"
    ),
    "peers are asked though the own disk is as fast": Mutant(
        L4, FETCH, r"            if self\._spared\(source\):\n                continue\n", ""
    ),
    "the own disk takes the place of a peer": Mutant(
        OWN_DISK, FETCH, r" - len\(self\._own_in\(\*OCCUPIED\)\)", ""
    ),
}
