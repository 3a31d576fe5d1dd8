"""Digests: one word for the same bytes, however they are cut."""

import os
import threading

import pytest

from netloader.io.cores import cores
from netloader.io.store.digests import ALGORITHMS, STEP_BYTES, digest_of, digests_of

# From the test vectors of the BLAKE3 specification: no input, and the three bytes 0, 1, 2.
EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
THREE = "e1be4d7a8ab5560aa4199eea339849ba8e293d55ca0a81006726d184519e647f"


def test_the_published_vectors_hold() -> None:
    assert digest_of("blake3", []) == EMPTY
    assert digest_of("blake3", [memoryview(bytes(range(3)))]) == THREE


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cuts_do_not_matter_and_bits_do(algorithm: str) -> None:
    data = bytearray(range(256)) * 5000
    whole = digest_of(algorithm, [memoryview(data)])
    parts = [memoryview(data)[:1], memoryview(data)[1 : STEP_BYTES + 3]]
    parts.append(memoryview(data)[STEP_BYTES + 3 :])
    cut = digest_of(algorithm, parts)
    data[-1] ^= 1

    assert cut == whole
    assert digest_of(algorithm, [memoryview(data)]) != whole


@pytest.mark.parametrize("workers", [1, 3])
def test_many_digests_come_in_order(workers: int) -> None:
    blocks = [bytes([i]) * 1000 for i in range(20)]
    readers = [lambda block=block: [memoryview(block)] for block in blocks]

    found = digests_of("blake3", readers, workers)

    assert list(found) == [digest_of("blake3", [memoryview(block)]) for block in blocks]


def test_several_workers_hash_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def reader() -> list[memoryview]:
        meeting.wait()  # passes only when the other segment is being read too
        return [memoryview(b"x")]

    assert len(digests_of("blake3", [reader, reader], 2)) == 2


def test_a_process_that_is_bound_to_some_cores_starts_threads_for_these() -> None:
    allowed = os.sched_getaffinity(0)
    seen: list[int] = []

    def bound() -> None:  # an affinity is of a thread
        os.sched_setaffinity(0, {min(allowed)})
        seen.append(cores())

    thread = threading.Thread(target=bound)
    thread.start()
    thread.join()

    assert seen == [1]
    assert cores() == len(allowed)
