"""Seeded bugs of what a fleet is operated with: registries, TLS, tokens, strangers."""

from typing import Final

from tests.property.layers import L2, L4, OPERATING, Mutant

ANNOUNCE: Final = "netloader/discovery/announce.py"
CLAIM: Final = "netloader/discovery/claim.py"
LOOKUP: Final = "netloader/discovery/lookup.py"
REDIS: Final = "netloader/discovery/redis_registry.py"
ETCD: Final = "netloader/discovery/etcd.py"
KUBERNETES: Final = "netloader/discovery/kubernetes.py"
RECORDS: Final = "netloader/metrics/records.py"
DIRECTORY: Final = "netloader/discovery/ray_directory.py"
TLS: Final = "netloader/secure/tls.py"
FILES: Final = "netloader/secure/files.py"
SECURING: Final = "netloader/io/securing.py"
DESCRIBE: Final = "netloader/io/describe.py"
FAILED: Final = "netloader/io/failed_sources.py"
NOTES: Final = "netloader/io/host_notes.py"
RECEPTION: Final = "netloader/io/reception.py"
STRANGERS: Final = "netloader/io/strangers.py"

OPERATING_MUTANTS: Final[dict[str, Mutant]] = {
    # registries
    "a lease is not renewed": Mutant(
        OPERATING, ANNOUNCE, r"monotonic\(\) \+ RENEW_S", "monotonic() + 1e9"
    ),
    "a server stays in the registry when its weights are withdrawn": Mutant(
        OPERATING,
        ANNOUNCE,
        r"self\._listed if candidate is None or .* else None",
        "self._listed if candidate and candidate.endpoint != self._listed else None",
    ),
    "a server stays in the registry when it ends": Mutant(
        OPERATING, ANNOUNCE, r"        self\._step\(None\)\n", ""
    ),
    "a registry that fails ends the announcement": Mutant(
        OPERATING, ANNOUNCE, r"except Exception as error:", "except ZeroDivisionError as error:"
    ),
    "an entry of Redis whose lease has ended is handed out": Mutant(
        OPERATING,
        REDIS,
        r"KEYS\[1\], now \+ ARGV\[3\], now, 'LIMIT'",
        "KEYS[1], '+inf', 0, 'LIMIT'",
    ),
    "a key of etcd has no lease": Mutant(
        OPERATING, ETCD, r', "lease": lease\}, timeout_s', "}, timeout_s"
    ),
    "a pod that is not ready is a source": Mutant(
        OPERATING, KUBERNETES, r'if \(endpoint.get\("conditions"\).* is not False:', "if True:"
    ),
    "an entry of Ray's actor whose lease has ended is handed out": Mutant(
        OPERATING, DIRECTORY, r" if entry\.until > now\]", "]"
    ),
    "sources that accept no connection are handed out": Mutant(
        OPERATING, LOOKUP, r"if place in written or place in open_\)", ")"
    ),
    "an instance finds itself": Mutant(OPERATING, LOOKUP, r" if place not in own\]", "]"),
    "the idle server is not preferred": Mutant(
        OPERATING, LOOKUP, r"!= self\._host, c\.load,", "!= self._host,"
    ),
    # metrics
    "what a peer says becomes a label": Mutant(
        OPERATING, RECORDS, r"return value if value in known else c\.OTHER", "return value"
    ),
    "a rate stays when nothing moves": Mutant(
        OPERATING, RECORDS, r"if not self\._open\[side\]:", "if False:"
    ),
    "a source that was left is still in use": Mutant(
        OPERATING,
        "netloader/metrics/recorder.py",
        r"family\.labels\(\*before\)\.set\(0\.0\)",
        "pass",
    ),
    "a client whose turn has come is still queued": Mutant(
        OPERATING, RECORDS, r"(def _tried.*\n)    yield NOT_QUEUED\n", r"\1"
    ),
    "weights that were withdrawn count as offered": Mutant(
        OPERATING, RECORDS, r"\(_role\(f\),\), 0\.0,", "(_role(f),), 1.0,"
    ),
    "a session stays in every phase that it has been in": Mutant(
        OPERATING,
        RECORDS,
        r'    yield from _in_phase\(fields, "netloader\.state\.from", -1\.0\)\n',
        "",
    ),
    # claims
    "all that start together are the first": Mutant(OPERATING, CLAIM, r"holder == owner:", "True:"),
    "a claim is not renewed": Mutant(OPERATING, CLAIM, r"self\._registry\.claim\(.*\)", "pass"),
    "a first that serves nothing keeps the others waiting": Mutant(
        OPERATING, CLAIM, r"self\._registry\.release\(.*\)", "pass"
    ),
    "who has waited waits for the next one": Mutant(
        OPERATING, CLAIM, r" or \(first and holder != first\)", ""
    ),
    "anyone gives back a claim of Redis": Mutant(
        OPERATING, REDIS, r" == ARGV\[1\] then redis\.call\('DEL'", " then redis.call('DEL'"
    ),
    "a claim of etcd is taken from its owner": Mutant(
        OPERATING, ETCD, r'"createRevision": "0"', '"createRevision": "0", "result": "NOT_EQUAL"'
    ),
    # what ranks of a host know
    "a source that failed is asked first again": Mutant(
        OPERATING, FAILED, r"\(s in failed\) \+ \(s\.host in hosts\)", "0"
    ),
    "a source that swallows packets holds the others up": Mutant(
        OPERATING, DESCRIBE, r"hasty if hurried else options", "options"
    ),
    "a source that was put off is not asked again": Mutant(
        OPERATING, DESCRIBE, r"left or slow or folders", "left or folders"
    ),
    "a source that failed is avoided for ever": Mutant(
        OPERATING, FAILED, r" < AVOIDED_S:", " < 1e9:"
    ),
    "a source that is busy is avoided": Mutant(
        OPERATING,
        FAILED,
        r"if attempt\.reason in FAILURES or attempt\.silent:",
        "if attempt.reason is not Reason.VERIFIED:",
    ),
    "a client of another rank of the host is refused": Mutant(
        L2,
        "netloader/fsm/server.py",
        r"return _differs\(session, event\) and bool\(session\.elsewhere\(event\)\)",
        "return False",
    ),
    "a client is sent on for what is served here": Mutant(
        L4,
        "netloader/fsm/server.py",
        r"return _differs\(session, event\) and bool\(session",
        "return bool(session",
    ),
    "the dead still speak for their port": Mutant(
        OPERATING,
        NOTES,
        r"            path\.unlink\(\)\n        return None\n    finally:",
        "            pass\n        return file.read(MOST_NOTE_BYTES)\n    finally:",
    ),
    "a folder that others can write to is used": Mutant(
        OPERATING, NOTES, r"if not \(stat\.S_ISDIR\(about\.st_mode\) and ours\):", "if False:"
    ),
    # TLS and tokens
    "a server with TLS takes plain peers": Mutant(
        OPERATING,
        SECURING,
        r"plain and decision is not None and not isinstance\(decision, Refusal\)",
        "False",
    ),
    "the host in a certificate does not matter": Mutant(
        OPERATING,
        TLS,
        r"client = self\._context\(ssl\.PROTOCOL_TLS_CLIENT\)",
        "client = self._context(ssl.PROTOCOL_TLS_CLIENT)\n        client.check_hostname = False",
    ),
    "any certificate is taken for the server's": Mutant(
        OPERATING,
        TLS,
        r"client = self\._context\(ssl\.PROTOCOL_TLS_CLIENT\)",
        "client = self._context(ssl.PROTOCOL_TLS_CLIENT)\n        client.check_hostname = False\n"
        "        client.verify_mode = ssl.CERT_NONE",
    ),
    "a client needs no certificate": Mutant(
        OPERATING, TLS, r"ssl\.CERT_REQUIRED", "ssl.CERT_OPTIONAL"
    ),
    "an older TLS is taken": Mutant(
        OPERATING, TLS, r"ssl\.TLSVersion\.TLSv1_3", "ssl.TLSVersion.TLSv1_2"
    ),
    "files are read only once": Mutant(
        OPERATING, FILES, r"if versions == self\._seen:", "if True:"
    ),
    "a file that cannot be used takes away what held before": Mutant(
        OPERATING,
        FILES,
        r"except \(OSError, ValueError\) as error:",
        "except ZeroDivisionError as error:",
    ),
    "a server goes on with the tokens of its start": Mutant(
        OPERATING,
        RECEPTION,
        r"return replace\(entry, tokens=current\(self\._token\)\)",
        "return entry",
    ),
    "a server takes the first of its tokens only": Mutant(
        OPERATING,
        "netloader/fsm/auth.py",
        r"for token in tokens if proves\(",
        "for token in tokens[:1] if proves(",
    ),
    # strangers
    "a host may fail as often as it likes": Mutant(
        OPERATING, STRANGERS, r"self\._level\(host, now\) - 1\.0", "self._level(host, now)"
    ),
    "a client that is told to wait is a stranger": Mutant(
        OPERATING,
        STRANGERS,
        r"session\.hello is None and verdict is not None and verdict\.reason in FAILURES",
        "verdict is not None and verdict.reason is not Reason.VERIFIED",
    ),
}
