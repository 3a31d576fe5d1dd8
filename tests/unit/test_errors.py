"""What a caller sees of netloader's exceptions."""

import pickle

import pytest

from netloader.errors import ConfigError, LocalProtocolError, NetloaderError, TableError


@pytest.mark.parametrize("kind", [LocalProtocolError, TableError, ConfigError])
def test_one_except_clause_catches_all(kind: type[NetloaderError]) -> None:
    assert issubclass(kind, NetloaderError)


def test_config_error_lists_every_problem_one_a_line() -> None:
    error = ConfigError(["LANES: 0 cannot be used", "MODEL is missing"])

    assert error.problems == ("LANES: 0 cannot be used", "MODEL is missing")
    assert str(error).splitlines() == [
        "netloader cannot use its configuration (2 problems):",
        "  LANES: 0 cannot be used",
        "  MODEL is missing",
    ]
    assert "(1 problem)" in str(ConfigError(["one"]))


def test_config_error_survives_the_way_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))

    assert error.problems == ("a", "b")
    assert str(error) == str(ConfigError(["a", "b"]))
