"""What the servers of one model are looked up by, made of an identity."""

import hashlib
from collections.abc import Mapping
from typing import Final

from netloader.discovery.base import Key
from netloader.fsm.canonical import canonical
from netloader.fsm.identity import PARTITION, Identity

COMMON: Final = ("model", "role", "dtype", "architecture", "quantization", "device")
"""Fields that are the same for all ranks of instances that can fill from each other."""
PARTITIONED: Final = ("tensor_parallel", "pipeline_parallel", "data_parallel")
"""Fields that say which part a rank has, and end with ` of ` and the number of parts."""
KEYED: Final = (
    *COMMON,
    *PARTITION,
    *("redundant_experts", "expert_map", "ascend", "draft_lm_head", "kv_cache_dtype"),
)
"""Fields that are known before a model is built, but for those of its config and of its files:
these are compared with the source, which names the one that differs."""


def key_of(identity: Identity) -> Key:
    """The key of one rank: of its part of the model."""
    return _key(identity, {name: identity.hard[name] for name in KEYED if name in identity.hard})


def instance_key_of(identity: Identity) -> Key:
    """The key of an instance: the same for all its ranks, other for other partitions."""
    hard = identity.hard
    plain = {name: hard[name] for name in COMMON if name in hard}
    parts = {name: hard[name].rpartition(" of ")[2] for name in PARTITIONED if name in hard}
    return _key(identity, plain | parts)


def _key(identity: Identity, plain: Mapping[str, str]) -> Key:
    digest = hashlib.sha256(canonical(plain)).hexdigest()[:16]
    return Key(identity.hard.get("model", ""), digest)
