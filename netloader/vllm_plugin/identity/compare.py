"""Compare what a source says of itself with this side, before a model is built.

What changes numbers is a difference, and the source is not asked for weights. What changes only
defaults or the handling of text is a warning: the weights are right all the same, and the ordinary
loader would answer no better with the same folder.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from netloader.fsm.identity import ABSENT, MAX_DIFFERENCES, PARTITION, Difference, Identity
from netloader.vllm_plugin.identity import resolved
from netloader.vllm_plugin.identity.files import MAX_FILES, Files
from netloader.vllm_plugin.identity.identity import DRAFT, FILE
from netloader.vllm_plugin.identity.local_model import LocalModel

ANSWERS = "answers"
"""The fact that carries, as JSON, what changes answers but no number of the model."""

ASKED = ("model", "role", "dtype", *PARTITION)
"""Fields that a source is asked to have before it describes itself, so that an instance sends us to
the right rank; the others are compared here, where it is known what to do about them."""
LATE = frozenset({"layout", "load_state", "tied_embeddings"})
"""Fields that a client knows only when its source has described itself."""
GROUPS = (resolved.CONFIG, resolved.POOLING, resolved.MULTIMODAL, resolved.SETTING, FILE)
"""Beginnings of the fields that are a difference when only one side has them."""

DEFAULT = "default."
"""How the warnings about defaults of requests begin."""
_DEFAULTS = "copy generation_config.json from the source's model folder into this one"
_OPTIONS = {
    "eos_token_id": _DEFAULTS,
    "logits_processors": "start both with the same --logits-processors",
}


@dataclass(frozen=True, slots=True)
class Answers:
    """What changes answers but no number of the model, on one side."""

    defaults: Mapping[str, str]
    text: Mapping[str, str] | None
    """Files that say how text is handled, with digests; None where no tokenizer is used."""
    overridden: tuple[str, ...]
    """Keys of the config that `--hf-overrides` sets."""

    def render(self) -> str:
        """As one line of JSON."""
        return json.dumps([dict(self.defaults), self.text and dict(self.text), self.overridden])


def answers_of(model: LocalModel) -> Answers:
    """Those of this side; a draft model answers no requests."""
    if model.role == DRAFT:
        return Answers({}, None, model.overridden)
    text: Mapping[str, str] | None = None
    if tokenizer := model.checkpoint.tokenizer():
        elsewhere = tokenizer.is_dir() and tokenizer != model.files.folder
        text = (Files(tokenizer) if elsewhere else model.files).text()
    return Answers(model.checkpoint.defaults(), text, model.overridden)


def parse(fact: str) -> Answers | None:
    """The answers that a source sent; None if it sent none, or none that can be read."""
    try:
        defaults, text, overridden = json.loads(fact)
    except (ValueError, TypeError, RecursionError):
        return None
    good = _words(defaults) and (text is None or _words(text)) and isinstance(overridden, list)
    return Answers(defaults, text, tuple(map(str, overridden))) if good else None


def _words(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def files_for(files: Files, theirs: Identity, told: Answers | None) -> dict[str, str]:
    """The files of this side that count for a source: its own needs, and what the source names.

    A file that was read here while the model was built, and not there, counts unless the source has
    the same: its process may have read it earlier.
    """
    named = (name.removeprefix(FILE) for name in theirs.hard if name.startswith(FILE))
    names = islice(named, MAX_FILES)
    found = {name: text for name in names if (text := files.digest(name)) is not None}
    listed = (told.text if told else None) or {}
    alike = {name for name, text in files.read.items() if listed.get(name) == text}
    mine = {name: text for name, text in files.needed().items() if name not in alike}
    return {**mine, **found}


def differences(
    mine: Identity, theirs: Identity, overridden: Iterable[str], told: Answers | None
) -> tuple[Difference, ...]:
    """What keeps a source from being asked for weights; `overridden` keys are this side's."""
    names = {n for n in (*mine.hard, *theirs.hard) if n.startswith(GROUPS)}
    names = (names | (mine.hard.keys() & theirs.hard.keys())) - LATE
    early, source = (
        Identity({n: text for n, text in side.hard.items() if n in names}, side.soft)
        for side in (mine, theirs)
    )
    keys = set(overridden), set(told.overridden if told else ())
    return tuple(_explained(found, *keys) for found in early.differences(source))


def _explained(found: Difference, mine: set[str], theirs: set[str]) -> Difference:
    """The same with what to do about it, as far as it is known which option made it."""
    if found.field.startswith(FILE):
        name = found.field.removeprefix(FILE)
        return replace(found, remedy=_about_file(name, found.mine, found.theirs))
    if not found.field.startswith(resolved.CONFIG):
        return found
    key = found.field.removeprefix(resolved.CONFIG).partition(".")[0]
    sides = [
        side
        for side, keys in (("this side", mine), ("the source", theirs))
        if not keys.isdisjoint((key, "*"))
    ]
    if not sides:
        return replace(found, remedy="the two config.json differ: use the same file on both sides")
    who = " and ".join(sides)
    return replace(found, remedy=f"set by --hf-overrides of {who}: give both sides the same")


def _about_file(name: str, mine: str, theirs: str) -> str:
    if mine == ABSENT:
        return f"copy {name} from the source's model folder into this one"
    if theirs == ABSENT:
        return f"the source's model folder has no {name}: use the same folder on both sides"
    return f"the two {name} differ: use the same revision of the folder on both sides"


def warnings(mine: Answers, theirs: Answers) -> tuple[Difference, ...]:
    """What makes the source answer the same request otherwise, one sentence each."""
    return tuple(islice(_warnings(mine, theirs), MAX_DIFFERENCES))


def _warnings(mine: Answers, theirs: Answers) -> Iterator[Difference]:
    for name in dict.fromkeys((*mine.defaults, *theirs.defaults)):
        a, b = mine.defaults.get(name, ABSENT), theirs.defaults.get(name, ABSENT)
        if a != b:
            remedy = _OPTIONS.get(name, f"{_DEFAULTS}, or set --override-generation-config")
            yield Difference(DEFAULT + name, a, b, remedy)
    if mine.text is None or theirs.text is None:
        return
    for name in dict.fromkeys((*theirs.text, *mine.text)):
        a, b = mine.text.get(name, ABSENT), theirs.text.get(name, ABSENT)
        if a != b:
            yield Difference(FILE + name, a, b, _about_file(name, a, b))
