"""One model that this rank loads, as vLLM's configuration described it before the model was built.

`reading.read_config` makes a `LocalModel`, and a load works with that instead of the configuration.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from vllm.config import ModelConfig

from netloader.fsm.identity import Identity
from netloader.vllm_plugin.identity import resolved
from netloader.vllm_plugin.identity.files import Files, folder_of
from netloader.vllm_plugin.identity.fingerprint import fingerprints
from netloader.vllm_plugin.identity.identity import (
    FILE,
    LAYOUT,
    PROCESSED,
    RAW,
    STATE,
    UNFILLED,
    UNTIED,
    kernel_versions,
)
from netloader.vllm_plugin.patches import compat

NO_STATE = "none"
"""The digest of what `load_weights` leaves behind where it leaves nothing."""


class Checkpoint:
    """What has to be asked of vLLM's ModelConfig again, because it changes after that was read.

    `adopt` unties the embeddings, and a reload from another folder writes that folder's path.
    """

    def __init__(self, model_config: ModelConfig) -> None:
        self._config = model_config
        self.built = False
        """Whether the model is built: what it was built by stays."""

    @property
    def tied(self) -> bool:
        """Whether `lm_head` is the embedding."""
        return bool(getattr(self._config.hf_config, "tie_word_embeddings", False))

    @property
    def untied(self) -> bool:
        """Whether vLLM untied them because the files hold an `lm_head`."""
        return compat.untied_by_checkpoint(self._config)

    def adopt(self, facts: Mapping[str, str]) -> bool:
        """Resolve as the server did what only checkpoint files can tell; True for a change.

        vLLM decides whether `lm_head` is tied by looking into the files
        (`ModelConfig.maybe_untie_word_embeddings`). A client with files of its own has decided
        already; one without would build other parameters than its server.
        """
        if self.built or facts.get(UNTIED) != "True" or not self.tied:
            return False
        return not self.has_weight_files() and compat.untie(self._config)

    def has_weight_files(self) -> bool:
        """Whether an ordinary loader would find weights; a hub id always may have some."""
        folder = Path(self._config.model)
        if not folder.is_dir():
            return True
        ends = ("safetensors", "bin", "pt", "pth")
        return any(next(folder.glob(f"*.{end}"), None) for end in ends)

    def revision(self) -> dict[str, str]:
        """The checkpoint's revision, as far as this side can see one."""
        return dict(self._revision())

    def _revision(self) -> Iterator[tuple[str, str]]:
        if commit := getattr(self._config.hf_config, "_commit_hash", None):
            yield "checkpoint_commit", str(commit)
        path = Path(self._config.model)
        if not path.exists():
            revision = getattr(self._config, "revision", None)
            path = folder_of(self._config.model, revision) or path
        yield from fingerprints(path).items()

    def defaults(self) -> dict[str, str]:
        """The defaults of a request."""
        return resolved.defaults(self._config)

    def tokenizer(self) -> Path | None:
        """Where the tokenizer is; None where none is used."""
        return None if self._config.skip_tokenizer_init else Path(self._config.tokenizer)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """What a load has to know of its model; made by `reading.read_config`."""

    role: str
    rank: int
    path: str
    """The checkpoint the model was configured with: a folder or the name of a repository."""
    device_type: str
    """Such as `cpu` or `npu`."""
    early: Identity
    """The fields of the identity that are known before the model is built."""
    kv_role: str
    """The part in the transfer of KV caches; a field of the identity in the processed layout."""
    overridden: tuple[str, ...]
    """Keys of the config that `--hf-overrides` sets."""
    unsteady: tuple[str, str]
    """Why weights change while the instance runs, and the remedy; empty if they do not."""
    worker_classes: tuple[str, ...]
    """Qualified names of the class of vLLM's worker and of its extension; may be empty."""
    files: Files
    """The files of the model's folder."""
    checkpoint: Checkpoint
    served_name: str = ""
    """What requests call the model."""

    def identity(
        self,
        layout: str = RAW,
        state: str = NO_STATE,
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> Identity:
        """All that must be equal.

        `state` is the digest of what `load_weights` left behind, `files` are those of the model's
        folder that can change numbers, with their digests.
        """
        hard = {
            **self.early.hard,
            "tied_embeddings": str(self.checkpoint.tied),
            "layout": layout,
            "load_state": state,
            **{FILE + name: digest for name, digest in files.items()},
        }
        if layout == PROCESSED:
            hard |= {**kernel_versions(), "kv_role": self.kv_role}
        return Identity(hard, self.checkpoint.revision())


def facts_of(layout: str, state: str, unfilled: Iterable[str], *, untied: bool) -> dict[str, str]:
    """What a server found in its checkpoint, and how it offers its weights; `state` is JSON."""
    return {
        UNTIED: str(untied),
        LAYOUT: layout,
        STATE: state,
        UNFILLED: json.dumps(sorted(unfilled)),
    }
