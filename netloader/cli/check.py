"""`netloader check`: whether a source would give its weights to an instance that starts here.

It does what an engine does before it builds a model. Building it would be the next step, so what
only a built model tells is not compared, and the answer says so.
"""

import os
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from netloader.cli.answers import Answer, CommandError, plain
from netloader.cli.codes import Code
from netloader.cli.places import places_of
from netloader.cli.sources import Told, ask
from netloader.fsm.identity import Difference
from netloader.io.options import ClientOptions
from netloader.units import counted

MOST: Final = 16
"""Servers that are compared, of those that are found."""
UNCOMPARED: Final = (
    "Not compared, because it takes a built model: names, shapes and layouts of the tensors, and "
    "what loading leaves behind. Not compared either: ranks other than 0, and options that only "
    "the command line of the engine has; give those that matter in --engine."
)


def run(source: str, folder: Path, engine: dict[str, Any], options: ClientOptions) -> Answer:
    """Compare what is known of a model before it is built.

    `engine` are arguments of vLLM's engine, such as `{"dtype": "bfloat16"}`.

    Raises:
        CommandError: the source does not answer, or vLLM cannot read the model.
    """
    if not folder.is_dir():
        raise CommandError(Code.USAGE, f"--model: {folder} is no folder")
    asked = _answers(source, options)
    local = read(folder, engine)
    compared = [(compare_with(told, local), told) for told in asked]
    found, told = min(compared, key=lambda each: len(each[0]))
    ready = told.status.state == "offered"
    return _answer(str(told.source), found, "" if ready else f"it is {told.status.state} now")


def _answers(source: str, options: ClientOptions) -> list[Told]:
    """What the servers say that a text names, as many as answer.

    Raises:
        CommandError: none does; why the first one does not.
    """
    told: list[Told] = []
    problems: list[CommandError] = []
    for place in places_of([source], options)[:MOST]:
        try:
            told.append(ask(place, {}, options))
        except CommandError as error:
            problems.append(error)
    if not told:
        raise problems[0]
    return told


def compare_with(told: Told, local: Any) -> tuple[Difference, ...]:
    """In what a server and a `LocalModel` differ, as far as that is known before it is built."""
    from netloader.vllm_plugin.identity import compare
    from netloader.vllm_plugin.identity.identity import RAW
    from netloader.vllm_plugin.load import load_state

    said = compare.parse(told.facts.get(compare.ANSWERS, ""))
    files = compare.files_for(local.files, told.identity, said)
    mine = local.identity(RAW, load_state.digest(load_state.NOTHING), files)
    return compare.differences(mine, told.identity, local.overridden, said)


def read(folder: Path, engine: dict[str, Any]) -> Any:
    """What vLLM makes of a folder and of arguments of its engine: a `LocalModel`.

    Raises:
        CommandError: it cannot be read, or there is no vLLM.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm.engine.arg_utils import EngineArgs

        from netloader.vllm_plugin.identity.reading import read_config
    except ImportError as error:
        problem = f"this needs vLLM, which cannot be imported: {error}"
        raise CommandError(Code.FAILED, problem) from error
    try:
        config = EngineArgs(**{"model": str(folder), **engine}).create_engine_config()
        return read_config(config, config.model_config, None)
    except Exception as error:
        problem = f"vLLM cannot read {folder}: {error}"
        raise CommandError(Code.FAILED, problem) from error


def _answer(source: str, found: tuple[Difference, ...], now: str) -> Answer:
    accepted = not found
    rows = [
        {"field": d.field, "mine": d.mine, "theirs": d.theirs, "remedy": d.remedy} for d in found
    ]
    data = {"source": source, "accepted": accepted, "differences": rows, "now": now}
    data["uncompared"] = UNCOMPARED
    note = Text(UNCOMPARED, style="dim")
    if accepted:
        line = f"{source} would accept this client, as far as it was compared{now and f'; {now}'}"
        return Answer(data, (Text(line, style="green"), note))
    count = f"{counted(len(found), 'field')} differ{'s' * (len(found) == 1)}"
    table = Table("field", "mine", "theirs", "what to do")
    for each in found:
        table.add_row(*map(plain, (each.field, each.mine, each.theirs, each.remedy)))
    return Answer(
        data, (Text(f"{source} would refuse: {count}", style="red"), table, note), Code.NO
    )
