"""Arguments: what a user would expect to work works, and the rest says what to give instead."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from netloader import (
    ClientOptions,
    Deadlines,
    Endpoint,
    HostStore,
    Identity,
    Reason,
    Role,
    Secret,
    ServerOptions,
)
from tests.unit.io.drivers import fill, serve
from tests.unit.io.helpers import IDENTITY, asking, closed_port, contents, serving, zoo

pytestmark = pytest.mark.usefixtures("driver")

NOWHERE = ["127.0.0.1:9"]
SECRET = "correct horse battery"


def filled(**given: Any) -> object:
    return fill(**{"model": zoo(1), "sources": NOWHERE, "identity": IDENTITY, **given})


def served(**given: Any) -> object:
    with serve(**{"model": zoo(1), "identity": IDENTITY, **given}) as server:
        return server


def published(**given: Any) -> None:
    with serve(zoo(1), IDENTITY) as server:
        server.publish(**{"model": zoo(1), "identity": IDENTITY, **given})


BAD_MODELS: list[tuple[Any, str]] = [
    (nn.Linear, "model is of type type; give an instance of Linear, not the class"),
    (HostStore, "model is of type type; give a torch.nn.Module, a state dict, named"),
    (None, "model is of type NoneType; give a torch.nn.Module, a state dict, named"),
    (torch.zeros(3), "model is of type Tensor; give a torch.nn.Module, a state dict"),
    ("weights.pt", "model is of type str; give a torch.nn.Module, a state dict"),
    ([torch.zeros(3)], r"model\[0\] is of type Tensor; give pairs of a name and a tensor"),
    ([("w",)], r"model\[0\] is of type tuple; give pairs of a name and a tensor"),
    ({"w": None}, r"model\['w'\] is of type NoneType; give tensors only, or the torch.nn.Module"),
    ({7: torch.zeros(3)}, r"a name in model, 7, is of type int; give a text"),
]
TWICE = [("w", torch.zeros(3)), ("w", torch.ones(3))]
BAD_IDENTITIES: list[tuple[Any, str]] = [
    ("demo", "identity is of type str; give a mapping of texts such as"),
    (None, "identity is of type NoneType; give a mapping of texts such as"),
    (["model"], "identity is of type list; give a mapping of texts such as"),
    ({"rank": 3}, r"identity\['rank'\] is of type int; give a text: str\(value\)"),
    ({"path": None}, r"identity\['path'\] is of type NoneType"),
    ({7: "x"}, r"a field name of identity is of type int; use a text: '7'"),
]


@pytest.mark.parametrize("call", [filled, served, published])
@pytest.mark.parametrize(("model", "words"), BAD_MODELS)
def test_what_is_no_model(call: Callable[..., object], model: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call(model=model)


@pytest.mark.parametrize("call", [filled, served, published])
@pytest.mark.parametrize(("identity", "words"), BAD_IDENTITIES)
def test_what_is_no_identity(call: Callable[..., object], identity: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call(identity=identity)


@pytest.mark.parametrize("call", [filled, served, published])
@pytest.mark.parametrize("role", ["", " \t"])
def test_an_empty_role_is_refused(call: Callable[..., object], role: str) -> None:
    with pytest.raises(ValueError, match=r"identity\['role'\] is empty; name a role, or leave"):
        call(identity={**IDENTITY, "role": role})


@pytest.mark.parametrize(
    ("sources", "error", "words"),
    [
        (None, TypeError, "sources is of type NoneType; give a list of sources"),
        (7, TypeError, "sources is of type int; give a list of sources"),
        (b"127.0.0.1:9", TypeError, "sources is of type bytes; give a list of sources"),
        ({"a": "127.0.0.1:9"}, TypeError, "sources is of type dict; give a list of sources"),
        ([("127.0.0.1", 9)], TypeError, r"sources\[0\] is of type tuple; give an Endpoint or"),
        (["127.0.0.1:9", None], TypeError, r"sources\[1\] is of type NoneType"),
        ("nowhere", ValueError, "'nowhere': write host:port"),
        (["127.0.0.1:9", "10.0.0.1"], ValueError, "'10.0.0.1': write host:port"),
    ],
)
def test_what_is_no_source(sources: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        filled(sources=sources)


@pytest.mark.parametrize(
    ("kind", "given", "error", "words"),
    [
        (ClientOptions, {"lanes": 0}, ValueError, "lanes is 0; use an integer from 1 to 16"),
        (ClientOptions, {"lanes": 17}, ValueError, "lanes is 17; use an integer from 1 to 16"),
        (ClientOptions, {"lanes": 2.0}, TypeError, "lanes is of type float; use an integer"),
        (ClientOptions, {"lanes": True}, TypeError, "lanes is of type bool; use an integer"),
        (ClientOptions, {"transports": 3}, TypeError, "transports is of type int; give a list"),
        (ClientOptions, {"transports": (3,)}, TypeError, r"transports\[0\] is of type int"),
        (ClientOptions, {"layouts": None}, TypeError, "layouts is of type NoneType; give a list"),
        (ClientOptions, {"token": SECRET}, TypeError, r"token is of type str; wrap the text: Sec"),
        (ClientOptions, {"deadlines": 5.0}, TypeError, "deadlines is of type float; give a netl"),
        (ClientOptions, {"report": 5}, TypeError, "report is of type int; give a callable"),
        (ClientOptions, {"cancel": True}, TypeError, "cancel is of type bool; give a threading.E"),
        (ClientOptions, {"timeout_s": -1}, ValueError, "timeout_s is -1; use a number from 0 to"),
        (ClientOptions, {"timeout_s": float("nan")}, ValueError, "timeout_s is nan; use a number"),
        (ClientOptions, {"timeout_s": "5"}, TypeError, "timeout_s is of type str; use a number"),
        (ClientOptions, {"silent": ("x",)}, TypeError, r"silent\[0\] is of type str; give what"),
        (ClientOptions, {"silent": 7}, TypeError, "silent is of type int; give what"),
        (ClientOptions, {"logger": logging.getLogger()}, TypeError, "logger is of type RootLogger"),
        (ServerOptions, {"transports": {"tcp"}}, TypeError, "transports is of type set; give a l"),
        (ServerOptions, {"segment_bytes": 1}, ValueError, "segment_bytes is 1; use an integer fr"),
        (ServerOptions, {"segment_bytes": 1e6}, TypeError, "segment_bytes is of type float"),
        (ServerOptions, {"max_bandwidth": "fast"}, ValueError, "max_bandwidth: 'fast' cannot be"),
        (ServerOptions, {"max_bandwidth": 9_999_999}, ValueError, "max_bandwidth: 9999999 cannot"),
        (ServerOptions, {"max_bandwidth": "100MB"}, ValueError, "max_bandwidth: the share of each"),
        (ServerOptions, {"busy_bandwidth": "1GB"}, ValueError, "busy_bandwidth and busy need each"),
        (ServerOptions, {"busy": bool}, ValueError, "busy_bandwidth and busy need each other"),
        (ServerOptions, {"busy": 1, "busy_bandwidth": 1}, TypeError, "busy is of type int"),
        (
            ServerOptions,
            {"busy": bool, "busy_bandwidth": "100MB"},
            ValueError,
            "busy_bandwidth: the share of each",
        ),
        (ClientOptions, {"digest": "md5"}, ValueError, "digest is 'md5'; give one of auto, blake3"),
        (ServerOptions, {"digest": None}, TypeError, "digest is of type NoneType; give auto, bl"),
        (ServerOptions, {"rails": ["eth0"]}, ValueError, "rails: 'eth0' is no address; write"),
        (ClientOptions, {"rails": ["0.0.0.0"]}, ValueError, "rails: '0.0.0.0' is no address"),
        (ClientOptions, {"rails": ["::1"] * 17}, ValueError, "rails are 17; give at most 16"),
        (ServerOptions, {"max_clients": 0}, ValueError, "max_clients is 0; use an integer from 1"),
        (ServerOptions, {"facts": ["a"]}, TypeError, "facts is of type list; give a mapping of t"),
        (ServerOptions, {"facts": {"a": 1}}, TypeError, r"facts\['a'\] is of type int"),
        (ServerOptions, {"token": SECRET}, TypeError, "token is of type str; wrap the text"),
        (ServerOptions, {"deadlines": {}}, TypeError, "deadlines is of type dict"),
        (ServerOptions, {"logger": None}, TypeError, "logger is of type NoneType"),
        (Endpoint, {"host": 7, "port": 1}, TypeError, "host is of type int; give a host name"),
        (Endpoint, {"host": "a", "port": "1"}, TypeError, "port is of type str; use an integer"),
        (Endpoint, {"host": "a", "port": True}, TypeError, "port is of type bool; use an integer"),
        (Deadlines, {"stall_s": "5"}, TypeError, "stall_s is of type str; use a number from"),
        (Deadlines, {"stall_s": None}, TypeError, "stall_s is of type NoneType; use a number"),
        (Deadlines, {"connect_s": True}, TypeError, "connect_s is of type bool; use a number"),
        (Deadlines, {"queue_s": -1}, ValueError, "queue_s is -1; use a number from 0 to"),
        (Secret, {"value": b"x"}, TypeError, "the value of a Secret is of type bytes; give a text"),
        (served, {"port": "80"}, TypeError, "port is of type str; use an integer from 0 to 65535"),
        (served, {"port": 65536}, ValueError, "port is 65536; use an integer from 0 to 65535"),
        (served, {"port": -1}, ValueError, "port is -1; use an integer from 0 to 65535"),
        (served, {"host": None}, TypeError, "host is of type NoneType; give a host name"),
        (served, {"options": ClientOptions()}, TypeError, "options is of type ClientOptions; give"),
        (served, {"options": {}}, TypeError, "options is of type dict; give a netloader.ServerOp"),
        (filled, {"options": ServerOptions()}, TypeError, "options is of type ServerOptions; give"),
        (filled, {"resume": True}, TypeError, "resume is of type bool; give what an earlier fill"),
        (filled, {"resume": {}}, TypeError, "resume is of type dict; give what an earlier fill"),
        (filled, {"model": TWICE}, ValueError, "model has 'w' twice; give each tensor a name"),
        (served, {"model": TWICE}, ValueError, "model has 'w' twice; give each tensor a name"),
        (published, {"facts": 7}, TypeError, "facts is of type int; give a mapping of texts"),
    ],
)
def test_a_wrong_option_names_itself_the_type_and_the_remedy(
    kind: Callable[..., object], given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        kind(**given)

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda names: filled(options=asking(transports=names)),
        lambda names: served(options=ServerOptions(transports=names)),
    ],
)
def test_an_unknown_transport_is_refused_with_those_there_are(call: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"'tpc'; did you mean tcp\? there are .*gloo.*tcp"):
        call(("gloo", "tpc"))


def test_endpoint_parse_takes_texts_only() -> None:
    with pytest.raises(TypeError, match="endpoint is of type int; write host:port"):
        Endpoint.parse(9)  # type: ignore[arg-type]


# -- what a user would expect to work ------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [lambda e: e, str, lambda e: [str(e)], lambda e: (e,), lambda e: iter([e])]
)
def test_a_single_source_and_any_iterable_of_sources(form: Callable[[Endpoint], Any]) -> None:
    target = zoo(2)
    with serving(zoo(1)) as server:
        assert fill(target, form(server.endpoint), IDENTITY, asking()).ok
    assert contents(target) == contents(zoo(1))


def test_lists_and_single_names_of_transports() -> None:
    assert ClientOptions(transports="tcp").transports == ("tcp",)  # type: ignore[arg-type]
    assert ServerOptions(transports=["gloo", "tcp"]).transports == ("gloo", "tcp")  # type: ignore[arg-type]
    assert ClientOptions(layouts=["raw"]).layouts == ("raw",)  # type: ignore[arg-type]


def test_no_source_at_all_is_an_outcome() -> None:
    assert fill(zoo(1), [], IDENTITY, asking()).reason is Reason.NO_SOURCE


def test_a_model_is_chosen_by_its_role_as_an_enum_or_as_a_text() -> None:
    target, draft = zoo(2), zoo(3)
    with serving(zoo(10), {**IDENTITY, "role": Role.TARGET}) as server:
        server.publish(zoo(20), Identity({**IDENTITY, "role": Role.DRAFT}))
        assert fill(target, server.endpoint, {**IDENTITY, "role": "target"}, asking()).ok
        assert fill(draft, server.endpoint, {**IDENTITY, "role": Role.DRAFT}, asking()).ok
        (attempt,) = fill(zoo(4), server.endpoint, {**IDENTITY, "role": "other"}, asking()).attempts

    assert contents(target) == contents(zoo(10))
    assert contents(draft) == contents(zoo(20))
    (difference,) = attempt.differences
    assert (difference.field, difference.mine, difference.theirs) == ("role", "other", "target")


def test_the_role_of_an_identity() -> None:
    assert Identity({"role": "draft"}).role == Role.DRAFT
    assert Identity({"role": "vision"}).role == "vision"
    assert Identity({"model": "x"}, {"role": "target"}).role is None
    assert str(Role.TARGET) == "target"


def test_a_refused_argument_leaves_nothing_running() -> None:
    place = closed_port()
    with pytest.raises(TypeError):
        served(port=place.port, identity=7)
    with pytest.raises(TypeError):
        served(port=place.port, model=7)
    with serve(zoo(1), IDENTITY, port=place.port) as server:
        with pytest.raises(TypeError):
            server.publish(zoo(2), 7)  # type: ignore[arg-type]
        target = zoo(2)
        assert fill(target, server.endpoint, IDENTITY, asking()).ok
    assert contents(target) == contents(zoo(1))
