"""Where sources are looked up, and where a server publishes itself, as an operator writes it."""

from pathlib import Path

import pytest

from netloader.vllm_plugin.config.settings import (
    Settings,
)
from netloader.vllm_plugin.config.sources import finders_of
from tests.unit.vllm_plugin.config.refused import PLANTED, in_a_list, problems_of


def test_one_text_is_for_every_rank_of_an_instance() -> None:
    settings = Settings.parse({"SOURCE": "10.0.0.1:20000"})

    assert [finders_of(settings.sources, rank)[0].name for rank in (0, 3)] == [
        "10.0.0.1:20000",
        "10.0.0.1:20000",
    ]


def test_sources_may_be_written_and_looked_up_in_one_list() -> None:
    sources = ["10.0.0.1:1", "servers.example:2", "srv+_x._tcp.example", "file:/run/a-{RANK}.txt"]
    settings = Settings.parse({"SOURCE": [{"device_id": 1, "sources": sources}]})

    assert [finder.name for finder in finders_of(settings.sources, 1)] == [
        "10.0.0.1:1",
        "servers.example:2",
        "srv+_x._tcp.example",
        "file:/run/a-0.txt",
    ]
    assert finders_of(settings.sources, 0) == ()


@pytest.mark.parametrize("text", ["redi://:{}@h/x", "{}@h:1", "https://{}"])
def test_a_source_that_cannot_be_looked_up_is_refused_and_never_shown(text: str) -> None:
    for extra in ({"SOURCE": text.format(PLANTED)}, in_a_list(text.format(PLANTED))):
        (problem,) = problems_of(extra)

        assert "SOURCE" in problem
        assert "write host:port, or srv+..., file:..." in problem
        assert PLANTED not in problem


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({}, None),
        ({"SOURCE": "redis://h/fleet"}, "redis://h:6379/fleet"),
        ({"SOURCE": "redis://h/fleet", "PUBLISH": "no"}, None),
        ({"SOURCE": "redis://h", "PUBLISH": "etcd://e/x"}, "etcd://e:2379/x"),
        ({"SOURCE": "h:1"}, None),
        ({"PUBLISH": "redis://user:secret@h:7/a/b"}, "redis://h:7/a/b"),
    ],
)
def test_a_server_publishes_itself_where_the_operator_says_or_looks(
    extra: dict[str, object], name: str | None
) -> None:
    registry = Settings.parse(extra).registry

    assert (registry.finder(0).name if registry else None) == name
    assert "secret" not in repr(registry)


def test_a_list_of_texts_is_for_every_rank() -> None:
    texts = ["file:/var/lib/netloader", "10.0.0.1:1", "redis://h/x"]
    settings = Settings.parse({"SOURCE": texts, "SAVE": "/var/lib/netloader"})

    for rank in (0, 3):
        assert [finder.name for finder in finders_of(settings.sources, rank)] == [
            "file:/var/lib/netloader",
            "10.0.0.1:1",
            "redis://h:6379/x",
        ]
    assert settings.registry is not None
    assert settings.save == Path("/var/lib/netloader")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("file:", "followed by nothing"),
        ("file:saved", "'file:saved' is no absolute path; write a path from / on"),
        ("redis://", "followed by nothing"),
        (7, "7"),
    ],
)
def test_one_wrong_text_of_a_list_is_named_by_its_place(source: object, told: str) -> None:
    (problem,) = problems_of({"SOURCE": ["10.0.0.1:1", source]})

    assert problem.startswith("SOURCE[1]: ")
    assert told in problem


@pytest.mark.parametrize("value", ["file:/a", "redis://", "redis://h:x", "etcd://:{}@/x", 7])
def test_a_registry_that_cannot_be_used_is_refused_and_never_shown(value: object) -> None:
    given = value.format(PLANTED) if isinstance(value, str) else value
    (problem,) = problems_of({"PUBLISH": given})

    assert problem.startswith("PUBLISH: ")
    assert PLANTED not in problem
