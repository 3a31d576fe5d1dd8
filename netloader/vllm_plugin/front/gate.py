"""The gate before vLLM's HTTP API, as ASGI: closed while there are no weights.

`GET /netloader/standby` says what the instance does, `POST /netloader/fill` fills it. Everything
else is answered with 503 and a sentence until it is filled, `/health` too.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from netloader.config import Secret
from netloader.io.clock import unix_time
from netloader.secure.request_proof import FILL, HttpRequest, ProofError
from netloader.secure.tokens import current
from netloader.vllm_plugin.front.instance import ServedInstance

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

STATE: Final = "/netloader/standby"
ALWAYS: Final = frozenset({"/metrics", "/version"})
"""What vLLM answers without weights."""
MOST_BYTES: Final = 1 << 16
"""Of a request to fill: thousands of addresses."""
BODY_S: Final = 30.0
"""In which the body of such a request is to arrive."""
UNPROVEN: Final = (
    "whoever names a source decides which weights this instance has, so that takes a token: set "
    "AUTH_TOKEN_FILE or --api-key here, or name no source, and those of SOURCE are asked"
)
RETRY_S: Final = "2"


class RefusedError(Exception):
    """A request to fill that is refused: the status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class GoneError(Exception):
    """The client has left before its request was complete."""


class Gate:
    """ASGI middleware. `find` gives what is known of an engine; None for one with weights."""

    def __init__(
        self, app: App, find: Callable[[Any], ServedInstance | None], keys: Sequence[Secret]
    ) -> None:
        self._app = app
        self._find = find
        self._keys = tuple(keys)
        """vLLM's API keys, each of which may fill it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        engine = getattr(scope["app"].state, "engine_client", None)
        instance = None if engine is None else self._find(engine)
        if instance is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(instance, scope, receive, send)
        elif scope["type"] == "http":
            await self._http(instance, scope, receive, send)
        elif await instance.ask():
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1013, "reason": "on standby"})

    async def _live(
        self, instance: ServedInstance, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Watch for sources as long as the server runs."""
        watching = asyncio.create_task(instance.watch())
        try:
            await self._app(scope, receive, send)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _http(
        self, instance: ServedInstance, scope: Scope, receive: Receive, send: Send
    ) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if (scope["method"], path) == ("POST", FILL):
            await self._fill(instance, scope, receive, send)
        elif path == STATE:
            await instance.ask()
            await _answer(send, HTTPStatus.OK, {"state": instance.state, "why": instance.why})
        elif path in ALWAYS or await instance.ask():
            await self._app(scope, receive, send)
        else:
            await _refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, instance.sentence, instance.state)

    async def _fill(
        self, instance: ServedInstance, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            body = await _body(receive)
            sources = _sources(body, self._proven(instance, scope, body))
        except RefusedError as refusal:
            await _refuse(send, refusal.status, str(refusal), instance.state)
            return
        except GoneError:
            return
        reports = await instance.fill(sources)
        status = HTTPStatus.OK if instance.filled else HTTPStatus.BAD_GATEWAY
        said = {"state": instance.state, "why": instance.why, "ranks": reports}
        await _answer(send, status, said)

    def _proven(self, instance: ServedInstance, scope: Scope, body: bytes) -> bool:
        """Whether a request has proven or shown a token; false where none is asked for.

        Raises:
            RefusedError: one is asked for, and was not.
        """
        known = [*self._keys, *current(instance.settings.token)]
        if not known:
            return False
        header = (value for name, value in scope["headers"] if name.lower() == b"authorization")
        try:
            HttpRequest(scope["method"], FILL, body).check(next(header, b""), known, unix_time())
        except ProofError as error:
            raise RefusedError(HTTPStatus.UNAUTHORIZED, str(error)) from error
        return True


async def _body(receive: Receive) -> bytes:
    """The whole body of a request.

    Raises:
        RefusedError: it is too large, or takes too long.
        GoneError: the client leaves before its end.
    """
    data = b""
    more = True
    try:
        async with asyncio.timeout(BODY_S):
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise GoneError
                data += message.get("body", b"")
                more = message.get("more_body", False)
                if len(data) > MOST_BYTES:
                    why = f"the body is larger than {MOST_BYTES} bytes"
                    raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)
    except TimeoutError as error:
        why = f"the body has not arrived within {BODY_S:g} s"
        raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, why) from error
    return data


def _sources(data: bytes, proven: bool) -> list[str]:  # noqa: FBT001 - a fact
    """The sources that a request names, which only one with a token may.

    Raises:
        RefusedError: it is no such request, or may not name any.
    """
    try:
        asked: Any = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        asked = None
    fits = isinstance(asked, dict) and asked.keys() <= {"source"}  # a wrong name would be passed by
    source = asked.get("source", []) if fits else None
    if not isinstance(source, list) or not all(isinstance(each, str) for each in source):
        why = 'the body must be {"source": ["host:port", ...]}, or empty'
        raise RefusedError(HTTPStatus.BAD_REQUEST, why)
    if source and not proven:
        raise RefusedError(HTTPStatus.FORBIDDEN, UNPROVEN)
    return source


async def _refuse(send: Send, status: HTTPStatus, why: str, state: str) -> None:
    """Say no as OpenAI's API does."""
    error = {"message": why, "type": state, "param": None, "code": int(status)}
    await _answer(send, status, {"error": error, "state": state})


async def _answer(send: Send, status: HTTPStatus, said: Mapping[str, object]) -> None:
    body = json.dumps(said).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", RETRY_S.encode()))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
