"""`netloader run SOURCE -- vllm serve ...`: an instance that has no folder of its own."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from netloader.cli.answers import MOST_LINE, Answer, CommandError, Form, plain
from netloader.cli.codes import Code
from netloader.cli.interrupts import interrupted
from netloader.cli.options import Link
from netloader.cli.places import places_of
from netloader.cli.sources import failure
from netloader.cli.words import (
    MODEL,
    REFUSE_CODE,
    REMOTE_CODE,
    SERVE,
    SERVED,
    VllmCommand,
    become,
    check_runs,
    settings_of,
    shown,
    unusable,
)
from netloader.files.fetching import Fetched, NoFilesError, UnansweredError, fetch
from netloader.files.hints import place_inspections, take_hints, vllm_root
from netloader.files.rules import DATA, WITH_CODE, FilesError
from netloader.units import counted, size


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says."""

    source: str
    words: Sequence[str]
    """vLLM's command, without a model."""
    trust: bool
    """Whether the source may run code here."""
    caches: bool
    """Whether to take over what the source computed at its start."""
    dry_run: bool
    link: Link


def run(wanted: Wanted, form: Form) -> Answer:
    """Fetch the files of the source's model, and become vLLM on them.

    Raises:
        CommandError: vLLM was not started.
    """
    vllm = check(wanted)
    fetched = _fetched(wanted)
    command = command_of(wanted, vllm, fetched)
    if wanted.caches:
        form.tell(_hints(wanted, fetched))
    answer = _answer(fetched)
    if not wanted.dry_run:
        form.tell(answer)
        become(command)
    told = shown(command)
    return Answer({**answer.data, "command": told}, (*answer.shown, Text(shlex.join(told))))


def check(wanted: Wanted) -> VllmCommand:
    """Read a command, and refuse one that cannot be completed, before anything is fetched.

    Raises:
        CommandError: it starts no vLLM server, cannot be run, or contradicts what is going to be
            added.
    """
    if SERVE not in wanted.words:
        raise unusable("give the command that starts vLLM: netloader run SOURCE -- vllm serve ...")
    vllm = VllmCommand.of(wanted.words)
    if vllm.has(MODEL) or (vllm.words and not vllm.words[0].startswith("-")):
        raise unusable("vLLM's model is the folder that is fetched; leave the model out")
    if vllm.has(REMOTE_CODE) and not wanted.trust:
        raise unusable(f"{REMOTE_CODE} lets the source run code here; give --trust, too")
    vllm.check_format("there are no weights in the folder; leave it out")
    if wanted.link.token is not None and not wanted.link.token_file:
        raise unusable("vLLM reads the token from a file; give it in --token-file")
    settings_of(_extra(wanted, vllm, "model"))
    if not wanted.dry_run:
        check_runs(wanted.words[0])
    return vllm


def command_of(wanted: Wanted, vllm: VllmCommand, fetched: Fetched) -> list[str]:
    """The command of vLLM on the fetched folder; what it says itself wins.

    Raises:
        CommandError: it names another model than the source has.
    """
    extra = _extra(wanted, vllm, fetched.model)
    model = settings_of(extra).model
    if model != fetched.model:
        what = f"MODEL is {model!r}, and the source serves {fetched.model!r}"
        raise unusable(f"{what}; leave MODEL out")
    served = [] if vllm.has(SERVED) else [f"{SERVED}={fetched.served_name}"]
    code = [] if wanted.trust else [REFUSE_CODE]
    return vllm.completed(extra, [str(fetched.folder)], [*served, *code])


def _extra(wanted: Wanted, vllm: VllmCommand, model: str) -> dict[str, object]:
    """The settings of the instance: what was given here, and over that what vLLM's words say."""
    link = wanted.link
    files = {
        "AUTH_TOKEN_FILE": link.token_file,
        "TLS_CERT": link.tls_cert,
        "TLS_KEY": link.tls_key,
        "TLS_CA": link.tls_ca,
    }
    ours = {name: str(path.absolute()) for name, path in files.items() if path is not None}
    caches = {"CACHES": True} if wanted.caches else {}
    return {"SOURCE": wanted.source, "MODEL": model, **ours, **caches, **vllm.extra()}


def _fetched(wanted: Wanted) -> Fetched:
    options = wanted.link.client
    places = places_of([wanted.source], options)
    rules = WITH_CODE if wanted.trust else DATA
    with interrupted() as cancel:
        try:
            return fetch(places, replace(options, cancel=cancel), rules)
        except UnansweredError as error:
            if cancel.is_set():
                raise CommandError(Code.INTERRUPTED, "interrupted") from error
            raise failure(error.attempt) from error
        except NoFilesError as error:
            raise CommandError(Code.REFUSED, str(error)) from error
        except FilesError as error:
            raise CommandError(Code.FAILED, f"{error}; nothing was written") from error


def _hints(wanted: Wanted, fetched: Fetched) -> Answer:
    """Put what vLLM reads before its plugins run in its place; without it, vLLM starts as ever."""
    root = vllm_root(os.environ)
    try:
        hints = take_hints([fetched.source], fetched.model, wanted.link.client)
        placed = place_inspections(hints, root)
    except FilesError as error:
        line = f"no hints: {error}; nothing was written"
        return Answer({"event": "no_hints", "reason": str(error)}, (plain(line, MOST_LINE),))
    data = {"event": "hints", "files": [*placed], "root": str(root)}
    count = counted(len(placed), "new file")
    return Answer(data, (Text(f"hints from {fetched.source}, {count}: {root}"),))


def _answer(fetched: Fetched) -> Answer:
    data = {
        "event": "fetched",
        "folder": str(fetched.folder),
        "source": str(fetched.source),
        "model": fetched.model,
        "files": [*fetched.names],
        "bytes": fetched.nbytes,
    }
    count = f"{counted(len(fetched.names), 'file')}, {size(fetched.nbytes)}"
    line = f"{count}, from {fetched.source}, verified: {fetched.folder}"
    return Answer(data, (Text(line),))
