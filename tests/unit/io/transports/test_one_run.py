"""A model is filled over a transport that carries one request in a session."""

from netloader.io import fill
from netloader.io.transports import TRANSPORTS, Capabilities
from netloader.io.transports.tcp import Tcp
from tests.unit.io.helpers import IDENTITY, MIB, asking, contents, module_of, random, serving


class Once(Tcp):
    """Tcp that says it carries one request."""

    name = "once"
    capabilities = Capabilities(repeatable=False)


def test_a_model_is_filled_over_a_transport_for_one_request() -> None:
    source, target = module_of(w=random(MIB)), module_of(w=random(MIB, seed=2))
    with TRANSPORTS.registered(Once()), serving(source, transports=("once",)) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking("once")).ok
    assert contents(target) == contents(source)
