"""The layers of the tests, cheapest first, and what a seeded bug is."""

from typing import Final, NamedTuple

LAYERS: Final[dict[str, tuple[str, ...]]] = {
    "L0 check at import": (),
    "L1 pairs": ("tests/property/test_pairs.py",),
    "L2 exhaustive search": ("tests/property/test_search.py",),
    "L2 a fetch": ("tests/property/test_fetch.py",),
    "L2 published models": ("tests/property/test_published_search.py",),
    "L3 bytes and time": (
        "tests/property/test_framing.py",
        "tests/property/test_connection.py",
        "tests/property/test_manifest.py",
        "tests/property/test_two_parties.py",
        "tests/property/test_honest.py",
        "tests/property/test_hostile.py",
        "tests/property/test_cuts.py",
    ),
    "L4 named cases": (
        "tests/unit/fsm",
        "tests/unit/wire",
        "tests/unit/io/store",
        "tests/unit/io/test_observe.py",
        "tests/unit/io/test_published.py",
        "tests/unit/io/test_catalog.py",
        "tests/unit/io/test_relays.py",
        "tests/unit/io/test_relays_lost.py",
        "tests/unit/io/test_doubts.py",
        "tests/unit/io/test_digest_algorithms.py",
        "tests/unit/io/test_client_sources.py",
        "tests/unit/io/test_worker.py",
        "tests/unit/io/test_client_worker.py",
        "tests/unit/io/test_asking.py",
        "tests/unit/io/test_referrals.py",
    ),
    "L4 modules that are served": (
        "tests/unit/io/test_module_state.py",
        "tests/unit/io/test_changes.py",
        "tests/unit/io/test_stores.py",
        "tests/unit/io/test_sharing.py",
        "tests/unit/io/test_memory.py",
    ),
    "L4 several sources": (
        "tests/unit/io/test_many_sources.py",
        "tests/unit/io/test_many_sources_end.py",
    ),
    "L4 asyncio": ("tests/unit/aio", "tests/unit/io/test_driver.py"),
    "L4 transports": (
        "tests/unit/io/test_pacing.py",
        "tests/unit/io/test_populating.py",
        "tests/unit/io/transports/test_host_chunks.py",
        "tests/unit/io/transports/test_shm.py",
        "tests/unit/io/test_client_transports.py",
    ),
    "L4 operating a fleet": (
        "tests/unit/discovery/test_lookup.py",
        "tests/unit/discovery/test_claim.py",
        "tests/unit/discovery/test_registries.py",
        "tests/unit/discovery/test_kubernetes.py",
        "tests/unit/discovery/test_ray.py",
        "tests/unit/io/test_describe.py",
        "tests/unit/io/test_tls.py",
        "tests/unit/io/test_tokens.py",
        "tests/unit/io/test_strangers_flood.py",
        "tests/unit/io/test_host_notes.py",
        "tests/unit/io/test_failed_sources.py",
        "tests/unit/metrics/test_metrics.py",
    ),
    "L4 files of a model's folder": (
        "tests/unit/files/test_rules.py",
        "tests/unit/files/test_folder.py",
        "tests/unit/files/test_fetching.py",
        "tests/unit/cli/test_run.py",
        "tests/unit/cli/test_words.py",
        "tests/unit/cli/test_credentials.py",
    ),
    "L4 caches": ("tests/unit/files/test_caches.py", "tests/unit/files/test_placing.py"),
    "L4 folders of an instance": ("tests/unit/cli/test_snapshot.py",),
    "L4 the own disk": (
        "tests/unit/io/test_own_folder.py",
        "tests/unit/io/test_saving.py",
        "tests/unit/vllm_plugin/load/test_folders.py",
    ),
    "L5 weights in use": (
        "tests/unit/vllm_plugin/serve/test_usage_record.py",
        "tests/unit/vllm_plugin/serve/test_first_use.py",
        "tests/unit/vllm_plugin/serve/test_served_model.py",
        "tests/unit/vllm_plugin/serve/test_change_monitor.py",
        "tests/unit/vllm_plugin/serve/test_worker.py",
    ),
    "L5 what a start computes": (
        "tests/unit/vllm_plugin/serve/test_kv_cache.py",
        "tests/unit/vllm_plugin/patches/test_cache_root.py",
        "tests/unit/vllm_plugin/load/test_caches.py",
    ),
    "L5 instances that start together": (
        "tests/unit/vllm_plugin/config/test_checks.py",
        "tests/unit/vllm_plugin/load/test_relays.py",
    ),
    "L5 standby": (
        "tests/unit/vllm_plugin/load/test_standby.py",
        "tests/unit/vllm_plugin/load/test_awaiting.py",
        "tests/unit/vllm_plugin/load/test_room.py",
        "tests/unit/vllm_plugin/load/test_reload.py",
        "tests/unit/vllm_plugin/front/test_gate.py",
        "tests/unit/io/test_request_proof.py",
        "tests/unit/cli/test_standby.py",
        "tests/unit/vllm_plugin/patches/test_on_demand.py",
        "tests/unit/vllm_plugin/patches/test_core.py",
        "tests/unit/vllm_plugin/patches/test_standing.py",
    ),
}
L0, L1, L2, FETCHES, LIFE, L3, L4, SERVED, MANY, AIO, TRANSPORTS, OPERATING, *LATER = LAYERS
FOLDERS, CACHES, SNAPSHOTS, OWN_DISK, L5, COMPUTED, STARTS, STANDBY = LATER


class Mutant(NamedTuple):
    """One bug."""

    layer: str
    file: str
    pattern: str
    mistake: str
