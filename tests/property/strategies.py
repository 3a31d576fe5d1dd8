"""What the property tests draw: pairs that match, pairs that do not, and what travels between."""

from dataclasses import replace
from typing import Any, Final

from hypothesis import strategies as st

from netloader.fsm.events import PEER_EVENTS, Violated
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, Progress, TensorSpec
from netloader.fsm.messages import Lane
from netloader.fsm.terms import CatalogEntry, FetchSpec
from netloader.wire.frames import Spoken
from tests.property.samples import SAMPLES
from tests.support.messages import (
    CURIOUS,
    DIGESTS,
    GUARDED,
    IDENTITY,
    MANIFEST,
    OFFERING,
    SEGMENT_BYTES,
    TOKEN,
    WISH,
)

progresses = st.builds(
    Progress,
    st.sampled_from(["sha256", "blake3", ""]),
    st.just(SEGMENT_BYTES),
    st.sampled_from([DIGESTS, ("other", "other", "other"), ()]),
    st.frozensets(st.integers(0, 2)),
)


@st.composite
def matching(draw: st.DrawFn) -> tuple[FetchSpec, CatalogEntry]:
    """A client and a server that should come to terms."""
    secured = draw(st.booleans(), label="token")
    spec = draw(st.sampled_from([WISH, WISH, WISH, CURIOUS]), label="spec")
    progress = draw(progresses, label="progress")
    lanes = draw(st.integers(1, 16), label="lanes")
    token = TOKEN if secured else None
    spec = replace(spec, token=token, progress=progress, lanes=lanes)
    return spec, GUARDED if secured else OFFERING


def _spoilt(**changes: Any) -> Manifest:
    """The manifest with another first tensor."""
    first, *rest = MANIFEST.tensors
    return Manifest((first._replace(**changes), *rest))


TENSORS: Final = MANIFEST.tensors
MANIFESTS: Final = {
    "another order": Manifest(tuple(TENSORS[i] for i in (0, 2, 1, 3))),
    "another dtype of the same size": _spoilt(dtype="float16"),
    "another shape of the same size": _spoilt(shape=(256, 300), stride=(300, 1)),
    "another stride": _spoilt(stride=(1, 300)),
    "another size": _spoilt(shape=(299, 256), nbytes=153_088),
    "another name": _spoilt(name="embedding"),
    "a name only there": Manifest(TENSORS[:3]),
    "a name only here": Manifest((*TENSORS, TensorSpec("more", "int8", (1,), (1,), 1))),
    "untied": Manifest((*TENSORS[:3], TENSORS[3]._replace(shares=-1))),
    "none at all": Manifest(()),
}
IDENTITIES: Final = {
    "another model": Identity({"model": "mamba", "tp_size": "1"}),
    "another partition": Identity({"model": "llama", "tp_size": "2"}),
    "a field less": Identity({"model": "llama"}),
    "a field more": Identity({"model": "llama", "tp_size": "1", "ep_size": "8"}),
    "another checkpoint": replace(IDENTITY, soft={"checkpoint": "rev-2"}),
}
UNLIKE: Final[dict[str, FetchSpec]] = {
    **{name: replace(WISH, manifest=manifest) for name, manifest in MANIFESTS.items()},
    **{name: replace(WISH, identity=identity) for name, identity in IDENTITIES.items()},
    "no layout in common": replace(WISH, layouts=("none",)),
    "no transport in common": replace(WISH, transports=("hccl",)),
    "no digest algorithm in common": replace(WISH, digest_algorithms=("crc32",)),
}
"""Clients that want something which OFFERING is not."""

pairs = st.one_of(matching(), matching(), st.sampled_from([(w, OFFERING) for w in UNLIKE.values()]))
windows = st.sampled_from([1, 7, 300, 1 << 16])
"""Bytes that a connection takes before they are read: from one to all."""
chunks = st.sampled_from([1, 2, 9, 10, 200, 1 << 20])
"""Bytes that one read gives: 9 are a header."""
plausible: st.SearchStrategy[Spoken] = st.sampled_from(
    [s for kind in PEER_EVENTS if kind is not Violated for s in SAMPLES[kind]]
    + [Lane("session-1", 0), Lane("nobody", 3)]
)
"""Messages that a peer might say, though not now or not like this."""
