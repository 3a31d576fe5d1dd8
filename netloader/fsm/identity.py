"""What must be equal for weights to be interchangeable, field by field."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice
from typing import Final

ABSENT = "(absent)"
ROLE = "role"
"""The hard field that says which of a server's models a client wants."""
PARTITION = (
    "tensor_parallel",
    "pipeline_parallel",
    "data_parallel",
    "context_parallel",
    "expert_parallel",
)
"""The hard fields that say which part of a model a rank has."""
MAX_DIFFERENCES = 32
"""The most that a refusal names, so that a peer with thousands of fields gets a short answer."""


class Role(StrEnum):
    """What a model is for: the value of the identity's field `role`.

    These are the roles that vLLM has. A program that serves several models from one port may use
    other texts, as long as both sides use the same ones; a server offers one model for each role.
    """

    TARGET = "target"
    """The model that answers."""
    DRAFT = "draft"
    """The smaller model that proposes tokens for its target (speculative decoding)."""
    FILES = "files"
    """No model: the files of the target's folder beside its weights, see `netloader.files`."""
    HINTS = "hints"
    """No model: numbers and descriptions that the engine computed at its start, as JSON."""
    CACHES = "caches"
    """No model: code that the engine compiled for its model, see `netloader.files.caches`."""


BESIDE: Final = (Role.FILES, Role.HINTS, Role.CACHES)
"""The roles that are no model."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which the two sides differ."""

    field: str
    mine: str
    theirs: str
    remedy: str = ""

    def swapped(self) -> "Difference":
        """The same difference as the other side sees it."""
        return Difference(self.field, self.theirs, self.mine, self.remedy)

    def __str__(self) -> str:
        text = f"{self.field}: mine is {self.mine!r}, theirs is {self.theirs!r}"
        return f"{text} ({self.remedy})" if self.remedy else text


@dataclass(frozen=True, slots=True)
class Identity:
    """Names and values that decide whether two models hold interchangeable weights."""

    hard: Mapping[str, str] = field(default_factory=dict)
    """Always compared; a field that only one side has is a difference."""
    soft: Mapping[str, str] = field(default_factory=dict)
    """Compared when both sides have the field (a checkpoint fingerprint, say)."""

    @property
    def role(self) -> str | None:
        """What the model is for: a `Role` or another text. None: nothing names one.

        A server looks at this field and at the part to choose the model that it offers to a client;
        then all fields are compared. A client without a role is offered a model without one.
        """
        return self.hard.get(ROLE)

    @property
    def part(self) -> tuple[str, ...]:
        """The fields of PARTITION that this identity has, each with its value."""
        return tuple(f"{name} {self.hard[name]}" for name in PARTITION if name in self.hard)

    @property
    def kind(self) -> dict[str, str]:
        """The role and the part, which together select one of a server's models."""
        return {name: self.hard[name] for name in (ROLE, *PARTITION) if name in self.hard}

    def crosses(self, theirs: "Identity") -> bool:
        """Whether the two differ in a field of PARTITION that both have."""
        both = [name for name in PARTITION if name in self.hard and name in theirs.hard]
        return any(self.hard[name] != theirs.hard[name] for name in both)

    def differences(self, theirs: "Identity") -> tuple[Difference, ...]:
        """The first few fields in which the two differ, in the order of this identity."""
        names = chain(self.hard, (name for name in theirs.hard if name not in self.hard))
        hard = _unequal(names, self.hard, theirs.hard)
        soft = _unequal((n for n in self.soft if n in theirs.soft), self.soft, theirs.soft)
        return tuple(islice(chain(hard, soft), MAX_DIFFERENCES))

    def disagreements(self, theirs: "Identity") -> tuple[Difference, ...]:
        """Differences in fields that both have: before a model is built, a client lacks some."""
        mine_all, theirs_all = {**self.hard, **self.soft}, {**theirs.hard, **theirs.soft}
        unequal = _unequal((n for n in mine_all if n in theirs_all), mine_all, theirs_all)
        return tuple(islice(unequal, MAX_DIFFERENCES))


PARTS = "SOURCE must name an instance of an equal partition with this rank on its host, or the rank"
REMEDIES: Mapping[str, str] = {  # a name with a dot belongs to the group before the dot
    "model": "start both with the same MODEL, or point SOURCE at a server of this model",
    "checkpoint": "the checkpoints are different revisions; use the same one on both sides",
    "checkpoint_commit": "the two are different commits on the hub; pin --revision on both",
    "role": "the source has no model of this role; a draft is served by a server that uses one",
    "dtype": "start both with the same --dtype",
    "quantization": "start both with the same --quantization, or on folders quantized alike",
    "kv_cache_dtype": "start both with the same --kv-cache-dtype",
    "config": "use the same config.json on both sides, and the same --hf-overrides",
    "pooling": "use the same modules.json and 1_Pooling on both sides, or the same --pooler-config",
    "multimodal": "start both with the same options for images, video and sound",
    "multimodal.off": "start both with the same --limit-mm-per-prompt and --language-model-only",
    "multimodal.mm_processor_kwargs": "start both with the same --mm-processor-kwargs",
    "multimodal.media_io_kwargs": "start both with the same --media-io-kwargs",
    "file": "both need the same file in the model's folder; copy it from the source's folder",
    "tensor_parallel": PARTS,
    "pipeline_parallel": PARTS,
    "data_parallel": PARTS,
    "context_parallel": PARTS,
    "expert_parallel": PARTS,
    "layout": "set LAYOUT so that both sides can do the same",
    "load_state": "the source told other things about its checkpoint before; start once more",
    "vllm": "as the kernels use them, weights fit one version of vLLM only; or set LAYOUT to raw",
}


def remedy_for(name: str) -> str:
    """What to do about a difference in a field: its own row, or that of its group before a dot."""
    ordinary = "start both sides with the same setting"
    return REMEDIES.get(name) or REMEDIES.get(name.partition(".")[0], ordinary)


def _unequal(
    names: Iterable[str], mine: Mapping[str, str], theirs: Mapping[str, str]
) -> Iterator[Difference]:
    for name in names:
        a, b = mine.get(name, ABSENT), theirs.get(name, ABSENT)
        if a != b:
            yield Difference(name, a, b, remedy_for(name))
