"""An instance on standby as its gate sees it: ranks that answer what they are told to."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from netloader.config import Secret
from netloader.secure.request_proof import FILL
from netloader.vllm_plugin.front.gate import Gate
from netloader.vllm_plugin.front.instance import ServedInstance
from tests.unit.vllm_plugin.helpers import settings


class Ranks:
    """An engine of vLLM's: what its ranks answer, and what they were asked."""

    def __init__(self, *reports: dict[str, Any]) -> None:
        self.reports = [*reports]
        self.asked: list[tuple[str, Any]] = []
        self.when_asked: Any = None
        self.becomes: list[dict[str, Any]] | None = None
        self.found: list[bool] = []

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.asked.append((method, *args))
        if self.when_asked is not None:
            await self.when_asked()
        if method == "netloader_finds_sources":
            return self.found
        if method == "netloader_fill" and self.becomes is not None:
            self.reports = self.becomes
        return self.reports

    def fills(self) -> list[Any]:
        return [args for method, *args in self.asked if method == "netloader_fill"]


class Site:
    """A gate before an application that answers everything."""

    def __init__(self, ranks: Ranks, keys: tuple[str, ...] = (), **options: Any) -> None:
        self.instance = ServedInstance(settings(**options), ranks)
        self.app = SimpleNamespace(state=SimpleNamespace(engine_client=ranks))
        self.passed: list[str] = []
        secrets = [Secret(key) for key in keys]
        self.gate = Gate(self._inner, lambda _: self.instance, secrets)

    async def _inner(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed.append(scope.get("path", scope["type"]))
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
        elif scope["type"] == "lifespan":
            await receive()

    async def hear(
        self, path: str, method: str, messages: list[Any], authorization: str = ""
    ) -> list[Any]:
        """What the gate sends to a client that sends these messages, and nothing after them."""
        heard: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            heard.append(message)

        headers = [(b"authorization", authorization.encode())] if authorization else []
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        await self.gate({**scope, "app": self.app}, receive, send)
        return heard

    async def ask(
        self, path: str, method: str = "GET", body: object = None, authorization: str = ""
    ) -> tuple[int, dict[str, Any]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
        messages = [{"type": "http.request", "body": data}]
        heard = await self.hear(path, method, messages, authorization)
        return heard[0]["status"], json.loads(heard[1]["body"])

    async def fill(self, body: object = None, token: str = "") -> tuple[int, dict[str, Any]]:
        return await self.ask(FILL, "POST", body, f"Bearer {token}" if token else "")
