"""Bytes, rates and durations as people write them."""

import pytest

from netloader.units import duration, rate, size


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (269_060_352, "269 MB")),
        *((999_600_000, "1 GB"), (14_500_000_000, "14.5 GB"), (2**43, "8.8 TB")),
    ],
)
def test_sizes(nbytes: int, said: str) -> None:
    assert size(nbytes) == said


def test_rates_and_durations() -> None:
    assert [rate(n * 2**20) for n in (0, 3, 460.8, 2150)] == [
        *("0.0 MiB/s", "3.0 MiB/s", "0.45 GiB/s", "2.10 GiB/s"),
    ]
    assert [duration(s) for s in (0, 0.004, 0.56, 9.96, 59.4, 59.6, 185)] == [
        *("0 ms", "4 ms", "0.6 s", "10 s", "59 s", "1 min", "3 min 5 s"),
    ]
