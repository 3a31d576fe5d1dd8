"""What takes requests in a process is wrapped for an instance on standby, and for no other."""

import asyncio
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from vllm.config.load import LoadConfig

from netloader.errors import ConfigError
from netloader.vllm_plugin.front.gate import Gate
from netloader.vllm_plugin.patches import front
from netloader.vllm_plugin.patches.once import wrap_once

LACK = [{"rank": 0, "filled": False}]


class Engine:
    """An engine of vLLM's that takes requests."""

    def __init__(self, load_format: str = "netloader", **extra: Any) -> None:
        load = LoadConfig(load_format=load_format, model_loader_extra_config=extra)
        self.vllm_config = SimpleNamespace(load_config=load)
        self.taken: list[str] = []

    async def collective_rpc(self, method: str) -> Any:
        return LACK

    async def add_request(self, request_id: str) -> None:
        self.taken.append(request_id)


def application(engine: Engine) -> Starlette:
    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("here")

    app = Starlette(routes=[Route("/x", answer)])
    app.state.engine_client = engine
    return app


async def status(app: Starlette) -> int:
    heard: list[Any] = []

    async def send(message: Any) -> None:
        heard.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return int(heard[0]["status"])


@pytest.mark.parametrize("put_together", [True, False])
@pytest.mark.parametrize(
    ("engine", "answered"),
    [
        (Engine(STANDBY=True), 503),
        (Engine(), 200),
        (Engine("auto", STANDBY=True), 200),
        (Engine("NetLoader", STANDBY=True), 503),
    ],
)
def test_the_http_api_of_an_instance_on_standby_is_closed(
    engine: Engine, answered: int, put_together: bool
) -> None:
    def build(_: Any) -> Starlette:
        app = application(engine)
        if put_together:
            app.middleware_stack = app.build_middleware_stack()
        return app

    module = ModuleType("vllm.entrypoints.of_a_test")
    vars(module)["build_app"] = build
    wrap_once(module, "build_app", front._gated)
    app = module.build_app(SimpleNamespace(load_format="as it was written"))
    assert asyncio.run(status(app)) == answered
    assert isinstance(app.middleware_stack, Gate)


def test_an_instance_whose_settings_cannot_be_read_any_more_answers_nothing(tmp_path: Path) -> None:
    app = application(Engine(CONFIG_FILE=f"{tmp_path}/gone.json"))
    app.middleware_stack = app.build_middleware_stack()
    front._close(app, [])
    with pytest.raises(ConfigError, match="CONFIG_FILE"):
        asyncio.run(status(app))


def test_only_a_request_of_an_instance_on_standby_is_refused() -> None:
    kind: Any = type("Wrapped", (Engine,), {"add_request": Engine.add_request})
    wrap_once(kind, "add_request", front._required)
    wrapped = kind.add_request
    wrap_once(kind, "add_request", front._required)
    assert kind.add_request is wrapped, "once is enough"

    async def scenario() -> None:
        waiting, other = kind(STANDBY=True), kind()
        with pytest.raises(Exception, match="on standby"):
            await waiting.add_request("a")
        await other.add_request("b")
        assert (waiting.taken, other.taken) == ([], ["b"])

    asyncio.run(scenario())
