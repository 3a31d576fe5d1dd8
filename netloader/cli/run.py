"""`netloader run SOURCE -- vllm serve ...`: an instance that has no folder of its own."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich.text import Text

from netloader.cli.answers import MOST_LINE, Answer, CommandError, Form, plain
from netloader.cli.codes import Code
from netloader.cli.configuration import object_of
from netloader.cli.interrupts import interrupted
from netloader.cli.options import Link
from netloader.cli.places import places_of
from netloader.cli.sources import failure
from netloader.cli.words import EXTRA, FORMAT, become, check_runs, taken
from netloader.errors import ConfigError
from netloader.files.fetching import Fetched, NoFilesError, UnansweredError, fetch
from netloader.files.hints import place_inspections, take_hints, vllm_root
from netloader.files.rules import DATA, WITH_CODE, FilesError
from netloader.units import counted, size
from netloader.vllm_plugin.config.settings import Settings

SERVE: Final = "serve"
SERVED: Final = "--served-model-name"
REMOTE_CODE: Final = "--trust-remote-code"
REFUSE_CODE: Final = "--no-trust-remote-code"


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
    check(wanted)
    fetched = _fetched(wanted)
    command = command_of(wanted, fetched)
    if wanted.caches:
        form.tell(_hints(wanted, fetched))
    answer = _answer(fetched, command)
    if not wanted.dry_run:
        form.tell(replace(answer, shown=answer.shown[:1]))
        become(command)
    return answer


def check(wanted: Wanted) -> None:
    """Refuse a command that cannot be completed, before anything is fetched.

    Raises:
        CommandError: it starts no vLLM server, cannot be run, or contradicts what is going to be
            added.
    """
    words = [word.partition("=")[0].replace("_", "-") for word in wanted.words]
    if SERVE not in words:
        raise _unusable("give the command that starts vLLM: netloader run SOURCE -- vllm serve ...")
    after = wanted.words[words.index(SERVE) + 1 :][:1]
    named = "--model" in words or (after and not after[0].startswith("-"))
    if named:
        raise _unusable("vLLM's model is the folder that is fetched; leave the model out")
    if REMOTE_CODE in words and not wanted.trust:
        raise _unusable(f"{REMOTE_CODE} lets the source run code here; give --trust, too")
    formats = taken(wanted.words, FORMAT)[1]
    if formats and formats[-1] != "netloader":
        raise _unusable(f"{FORMAT} {formats[-1]}: there are no weights in the folder; leave it out")
    if any(word.startswith(f"{EXTRA}.") for word in words):
        raise _unusable(f"give {EXTRA} as one JSON object")
    if wanted.link.token is not None and not wanted.link.token_file:
        raise _unusable("vLLM reads the token from a file; give it in --token-file")
    _settings(_extra(wanted, "model"))
    if not wanted.dry_run:
        check_runs(wanted.words[0])


def command_of(wanted: Wanted, fetched: Fetched) -> list[str]:
    """The command of vLLM on the fetched folder; what the command line says itself wins.

    Raises:
        CommandError: it names another model than the source has.
    """
    rest, _ = taken(taken(wanted.words, FORMAT)[0], EXTRA)
    extra = _extra(wanted, fetched.model)
    if extra["MODEL"] != fetched.model:
        what = f"MODEL is {extra['MODEL']!r}, and the source serves {fetched.model!r}"
        raise _unusable(f"{what}; leave MODEL out")
    after = rest.index(SERVE) + 1
    served = [] if taken(rest, SERVED)[1] else [f"{SERVED}={fetched.served_name}"]
    return [
        *rest[:after],
        str(fetched.folder),
        *rest[after:],
        *served,
        *([] if wanted.trust else [REFUSE_CODE]),
        FORMAT,
        "netloader",
        EXTRA,
        json.dumps(extra),
    ]


def _extra(wanted: Wanted, model: str) -> dict[str, object]:
    """The settings of the instance: what was given here, and over that what vLLM's words say."""
    link = wanted.link
    files = {
        "AUTH_TOKEN_FILE": link.token_file,
        "TLS_CERT": link.tls_cert,
        "TLS_KEY": link.tls_key,
        "TLS_CA": link.tls_ca,
    }
    ours = {name: str(path.absolute()) for name, path in files.items() if path is not None}
    given = taken(wanted.words, EXTRA)[1]
    own = object_of(given[-1]) if given else {}
    caches = {"CACHES": True} if wanted.caches else {}
    return {"SOURCE": wanted.source, "MODEL": model, **ours, **caches, **own}


def _settings(extra: Mapping[str, object]) -> None:
    try:
        Settings.parse(extra)
    except ConfigError as error:
        raise _unusable("; ".join(error.problems)) from error


def _unusable(problem: str) -> CommandError:
    return CommandError(Code.USAGE, problem)


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


def _answer(fetched: Fetched, command: Sequence[str]) -> Answer:
    data = {
        "event": "fetched",
        "folder": str(fetched.folder),
        "source": str(fetched.source),
        "model": fetched.model,
        "files": [*fetched.names],
        "bytes": fetched.nbytes,
        "command": [*command],
    }
    count = f"{counted(len(fetched.names), 'file')}, {size(fetched.nbytes)}"
    line = f"{count}, from {fetched.source}, verified: {fetched.folder}"
    return Answer(data, (Text(line), Text(shlex.join(command))))
