"""Records of each event, and what an operator reads of them."""

from typing import Any

PEER = {"network.peer.address": "10.0.0.1", "network.peer.port": 19374}
DONE = {
    **PEER,
    "netloader.outcome": "done",
    "netloader.reason": "verified",
    "netloader.transfer.bytes": 269_060_352,
    "netloader.transfer.duration_s": 0.5587,
    "netloader.transfer.throughput_bytes_per_s": 481_580_000,
    "netloader.digest_algorithm": "blake3",
}
GONE = {**PEER, "netloader.outcome": "fallback", "netloader.transfer.bytes": 0}
TABLE = {"netloader.source": "10.0.0.1:19374", "netloader.field": "'dtype'"}
UNLIKE = {**TABLE, "netloader.mine": "'bf16'", "netloader.theirs": "'fp16'"}
HISTORY = "10.0.0.1:19374: busy (4 of 4); 10.0.0.2:19374: unreachable (Connection refused)"

SAID: dict[str, tuple[str, dict[str, Any], str]] = {
    "load": (
        "netloader.session.closed",
        {**DONE, "netloader.side": "client", "netloader.source.attempt": 1},
        "Loaded 269 MB from 10.0.0.1:19374 in 0.6 s (0.45 GiB/s), verified with blake3",
    ),
    "load from a second source, by one of two ranks": (
        "netloader.session.closed",
        {
            **DONE,
            "netloader.side": "client",
            "netloader.source.attempt": 2,
            "netloader.rank": 1,
            "netloader.ranks": 2,
        },
        (
            "Rank 1: Loaded 269 MB from 10.0.0.1:19374 (attempt 2) in 0.6 s (0.45 GiB/s), "
            "verified with blake3"
        ),
    ),
    "sent": (
        "netloader.session.closed",
        {**DONE, "netloader.side": "server", "netloader.rank": 0, "netloader.ranks": 1},
        "Sent 269 MB to 10.0.0.1:19374 in 0.6 s (0.45 GiB/s), verified with blake3",
    ),
    "source that died in the middle": (
        "netloader.session.closed",
        {
            **GONE,
            "network.peer.address": "fd00::1",
            "netloader.side": "client",
            "netloader.reason": "connection_lost",
            "netloader.detail": "Connection reset by peer",
            "netloader.transfer.bytes": 1_234_567_890,
        },
        (
            "Source [fd00::1]:19374 delivers no weights: connection_lost after 1.23 GB "
            "(Connection reset by "
            "peer); look for the cause in the log of the other side"
        ),
    ),
    "source that cannot be asked before the model is built": (
        "netloader.session.closed",
        {
            **GONE,
            "netloader.side": "client",
            "netloader.reason": "unreachable",
            "netloader.detail": "Connection refused",
            "netloader.purpose": "describe",
        },
        (
            "Source 10.0.0.1:19374 does not say what it serves: unreachable (Connection refused); "
            "check that the source runs and that this host can reach its port"
        ),
    ),
    "refusal with differences, at the server": (
        "netloader.session.closed",
        {
            **GONE,
            "netloader.side": "server",
            "netloader.reason": "identity_mismatch",
            "netloader.detail": "differing: dtype",
            "netloader.difference.0": "dtype: mine is 'a', theirs is 'b' (use one dtype)",
        },
        (
            "Client 10.0.0.1:19374 got no weights: identity_mismatch (differing: "
            "dtype); dtype: mine "
            "is 'a', theirs is 'b' (use one dtype); start both sides with the same "
            "model and settings"
        ),
    ),
    "refusal with differences, at the client": (
        "netloader.source.differs",
        {**UNLIKE, "netloader.what_to_do": "give both sides one --dtype"},
        (
            "Source 10.0.0.1:19374 differs in 'dtype': 'bf16' here, 'fp16' there; give "
            "both sides one "
            "--dtype"
        ),
    ),
    "other answers": (
        "netloader.source.answers_differ",
        {**UNLIKE, "netloader.what_to_do": "copy the file"},
        (
            "Source 10.0.0.1:19374 has the same weights, but may answer otherwise "
            "because of 'dtype': "
            "'bf16' here, 'fp16' there; copy the file"
        ),
    ),
    "fallback": (
        "netloader.fallback.engaged",
        {
            "netloader.detail": HISTORY,
            "netloader.fallback": "auto",
            "netloader.reason": "no_source",
        },
        f"No weights from a source: {HISTORY}; loading with vLLM's loader (auto) instead",
    ),
    "fallback after bytes had arrived": (
        "netloader.fallback.engaged",
        {
            "netloader.detail": HISTORY,
            "netloader.fallback": "auto",
            "netloader.weights_dirty": True,
        },
        (
            f"No weights from a source: {HISTORY}; loading with vLLM's loader (auto) "
            "instead; what has "
            "arrived is overwritten"
        ),
    ),
    "fallback that is not allowed": (
        "netloader.fallback.engaged",
        {"netloader.detail": HISTORY, "netloader.fallback": "never"},
        f"No weights from a source: {HISTORY}; FALLBACK is never, so this load fails",
    ),
    "no source": (
        "netloader.loader.ordinary",
        {"netloader.fallback": "auto"},
        "No source is named for this rank, or none fits; loading with vLLM's loader (auto) instead",
    ),
    "sources that were looked up": (
        "netloader.discovery.looked",
        {
            "netloader.finder": "redis://h:6379/x",
            "netloader.found": 3,
            "netloader.sources": "10.0.0.1:1, 10.0.0.2:1",
        },
        "Sources at redis://h:6379/x: 3; to be asked: 10.0.0.1:1, 10.0.0.2:1",
    ),
    "sources that are gone": (
        "netloader.discovery.looked",
        {"netloader.finder": "file:/a/*", "netloader.found": 3, "netloader.sources": ""},
        "Sources at file:/a/*: 3; none of them accepts a connection",
    ),
    "nobody": (
        "netloader.discovery.looked",
        {"netloader.finder": "file:/a/*", "netloader.found": 0, "netloader.sources": ""},
        "Sources at file:/a/*: none yet",
    ),
    "no answer": (
        "netloader.discovery.failed",
        {"netloader.finder": "redis://h:6379/x", "netloader.detail": "late"},
        "The place where sources are looked up gave no answer: redis://h:6379/x (late)",
    ),
    "a server in a registry": (
        "netloader.publish.changed",
        {
            "netloader.finder": "redis://h:6379/x",
            "netloader.endpoint": "10.0.0.1:1",
            "netloader.detail": "is named to clients",
        },
        "This rank, 10.0.0.1:1, is named to clients at redis://h:6379/x",
    ),
    "a server that cannot be put there": (
        "netloader.publish.failed",
        {"netloader.finder": "redis://h:6379/x", "netloader.detail": "refused"},
        "This rank cannot be published at redis://h:6379/x (refused); tried again",
    ),
    "garbage": (
        "netloader.discovery.odd",
        {"netloader.finder": "file:/a/*", "netloader.detail": "7 of its entries"},
        "The place where sources are looked up holds something else: file:/a/* (7 of its entries)",
    ),
    "offer": (
        "netloader.server.offered",
        {
            "netloader.endpoint": "10.0.0.2:19374",
            "netloader.layout": "raw",
            "netloader.raw_bytes": 269_060_352,
            "netloader.cached_bytes": 3_100,
            "netloader.cached_in": "dram",
        },
        (
            "Serving 269 MB (raw layout) at 10.0.0.2:19374; 3 kB of original weights "
            "are kept in dram "
            "for that"
        ),
    ),
    "withdrawn": (
        "netloader.server.withdrawn",
        {"netloader.detail": "weights were updated", "netloader.remedy": "use reload_weights"},
        (
            "Weights are no longer served: weights were updated; clients are refused as "
            "`not_serving` until the weights are served again; use reload_weights"
        ),
    ),
    "refused": (
        "netloader.server.refused",
        {"netloader.detail": "originals are gone.", "netloader.remedy": "set WEIGHT_CACHE"},
        "This rank does not serve its weights: originals are gone; set WEIGHT_CACHE",
    ),
    "waiting": (
        "netloader.source.waiting",
        {
            "netloader.sources": "10.0.0.1:19374",
            "netloader.wait_s": 1.0,
            "netloader.wait_count": 1,
            "netloader.patience_s": 120.0,
        },
        "10.0.0.1:19374: busy or not ready; asked again for up to 2 min",
    ),
    "port taken": (
        "netloader.listener.failed",
        {
            "network.local.address": "0.0.0.0",
            "network.local.port": 19374,
            "netloader.detail": "Address already in use",
            "netloader.holder": "process 7",
            "netloader.remedy": "choose another LISTEN_PORT",
        },
        (
            "This rank does not serve: 0.0.0.0:19374 cannot be opened (Address already in use; in "
            "use by process 7); choose another LISTEN_PORT"
        ),
    ),
    "no page of metrics": (
        "netloader.metrics.failed",
        {
            "network.local.address": "*",
            "network.local.port": 9400,
            "netloader.detail": "Address already in use",
            "netloader.remedy": "choose another METRICS_PORT",
        },
        ("No metrics are served at *:9400 (Address already in use); choose another METRICS_PORT"),
    ),
    "violation": (
        "netloader.peer.violation",
        {**PEER, "netloader.side": "server", "netloader.detail": "no message"},
        (
            "Client 10.0.0.1:19374 broke the protocol: no message; check that both sides run "
            "netloader, and compare their versions"
        ),
    ),
}

SILENT: dict[str, tuple[str, dict[str, Any]]] = {
    "a source that only described itself": (
        "netloader.session.closed",
        {**GONE, "netloader.outcome": "done", "netloader.reason": "described"},
    ),
    "a busy source": (
        "netloader.session.closed",
        {**GONE, "netloader.side": "client", "netloader.reason": "busy"},
    ),
    "our view of a violation": (
        "netloader.session.closed",
        {**GONE, "netloader.reason": "protocol_violation", "netloader.by_peer": False},
    ),
    "a second wait": ("netloader.source.waiting", {"netloader.wait_count": 2}),
    "a usual registration": ("netloader.plugin.registered", {}),
}
