"""The gate before vLLM's HTTP API: closed while there are no weights, whoever asks for what."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netloader.config import Secret
from netloader.io.clock import unix_time
from netloader.log import capture
from netloader.secure.request_proof import FILL, HttpRequest
from netloader.secure.tokens import TokenFile
from netloader.vllm_plugin.front import gate, instance
from netloader.vllm_plugin.front.instance import Instance
from netloader.vllm_plugin.serve.standing import StandbyError
from tests.unit.vllm_plugin.front.site import Ranks, Site
from tests.unit.vllm_plugin.helpers import line_of, settings

TOKEN = "sixteen characters and more"
SOURCE = {"source": ["10.0.0.1:19374"]}
HAVE: dict[str, Any] = {"rank": 0, "filled": True}
LACK: dict[str, Any] = {"rank": 1, "filled": False}


@pytest.mark.parametrize("path", ["/health", "/v1/completions", "/v1/models", "/ping", "/x"])
def test_nothing_is_answered_while_a_rank_has_no_weights(path: str) -> None:
    async def scenario() -> None:
        site = Site(ranks := Ranks(HAVE, LACK))
        status, said = await site.ask(path)
        assert (status, said["state"], site.passed) == (503, "standby", [])
        assert "standby" in said["error"]["message"]
        ranks.reports = [HAVE, {**LACK, "filled": True}]
        assert (await site.ask(path))[0] == 200
        assert site.passed == [path]
        asked = len(ranks.asked)
        await site.ask(path)
        assert len(ranks.asked) == asked, "it is known now"

    asyncio.run(scenario())


def test_what_needs_no_weights_is_answered_and_the_state_is_told() -> None:
    async def scenario() -> None:
        site = Site(Ranks(LACK))
        assert (await site.ask("/metrics"))[0] == 200
        assert await site.ask("/netloader/standby") == (200, {"state": "standby", "why": ""})

    asyncio.run(scenario())


def test_a_fill_that_one_rank_did_not_get_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)

    async def scenario() -> None:
        ranks = Ranks(LACK)
        site = Site(ranks, token=TokenFile(tmp_path / "token"))
        ranks.becomes = [HAVE, {**LACK, "why": "unreachable"}]
        status, said = await site.fill(SOURCE, TOKEN)
        assert (status, said["state"], said["why"]) == (502, "standby", "rank 1: unreachable")
        assert said["ranks"] == ranks.becomes
        assert ranks.fills() == [[SOURCE["source"]]]
        assert "unreachable" in (await site.ask("/health"))[1]["error"]["message"]

        ranks.becomes = [HAVE]
        status, said = await site.fill(SOURCE, TOKEN)
        assert (status, said["state"], said["why"]) == (200, "filled", "")
        assert (await site.ask("/health"))[0] == 200

    asyncio.run(scenario())


def test_who_names_a_source_shows_a_token_and_without_any_only_those_of_the_settings_are_asked(
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")

    async def scenario() -> None:
        site = Site(ranks := Ranks(LACK), ("key",), token=TokenFile(tmp_path / "token"))
        assert (await site.fill(SOURCE))[0] == 401
        status, said = await site.fill(SOURCE, "wrong")
        assert (status, ranks.fills()) == (401, [])
        assert TOKEN not in str(said)
        for token in ("key", TOKEN):
            assert (await site.fill(SOURCE, token))[0] == 502
        assert len(ranks.fills()) == 2

        unguarded = Site(ranks := Ranks(LACK))
        status, said = await unguarded.fill(SOURCE)
        assert (status, ranks.fills()) == (403, [])
        assert "AUTH_TOKEN_FILE" in said["error"]["message"]
        assert (await unguarded.fill())[0] == 502
        assert ranks.fills() == [[[]]]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[]", 400),
        ({"source": "10.0.0.1:1"}, 400),
        ({"source": [1]}, 400),
        ({"sources": ["10.0.0.1:1"]}, 400),
        (b"[" * (1 << 17), 413),
    ],
)
def test_what_is_no_request_to_fill_is_refused(body: object, status: int) -> None:
    async def scenario() -> None:
        site = Site(ranks := Ranks(LACK), ("key",))
        assert (await site.fill(body, "key"))[0] == status
        assert ranks.fills() == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "begun", [[], [{"type": "http.request", "body": b'{"source": ', "more_body": True}]]
)
def test_a_client_that_leaves_before_it_has_named_its_source_starts_no_fill(
    begun: list[Any],
) -> None:
    async def scenario() -> None:
        site = Site(ranks := Ranks(LACK), ("key",))
        heard = await site.hear(FILL, "POST", [*begun, {"type": "http.disconnect"}], "Bearer key")
        assert (heard, ranks.fills()) == ([], [])

    asyncio.run(scenario())


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_S", 0.01)

    async def scenario() -> None:
        site = Site(ranks := Ranks(LACK), ("key",))
        heard = await site.hear(FILL, "POST", [], "Bearer key")
        assert (heard[0]["status"], ranks.fills()) == (408, [])

    asyncio.run(scenario())


def test_a_token_is_proven_for_one_body_and_near_one_time(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"another one, which is the first\n{TOKEN}\n")
    body = json.dumps(SOURCE).encode()

    async def scenario() -> None:
        site = Site(ranks := Ranks(LACK), ("key",), token=TokenFile(tmp_path / "token"))

        async def shown(token: str, off_s: float = 0.0, of: bytes = body) -> tuple[int, str]:
            proof = HttpRequest("POST", FILL, of).prove(Secret(token), unix_time() + off_s)
            status, said = await site.ask(FILL, "POST", body, proof)
            return status, said.get("error", {}).get("message", "")

        for token in ("key", TOKEN):
            assert (await shown(token))[0] == 502, "proven, but no rank is filled"
        assert len(ranks.fills()) == 2
        for status, _ in (await shown("wrong"), await shown(TOKEN, of=b"")):
            assert status == 401
        status, why = await shown(TOKEN, -1000)
        assert (status, "1000 s behind" in why or "1001 s behind" in why) == (401, True)
        assert "ahead of" in (await shown(TOKEN, 1000))[1]
        assert len(ranks.fills()) == 2

    asyncio.run(scenario())


def test_an_engine_that_fails_during_a_fill_is_an_answer_with_the_reason() -> None:
    async def scenario() -> None:
        site = Site(ranks := Ranks(LACK))

        async def fail() -> None:
            raise RuntimeError("EngineCore died")

        ranks.when_asked = fail
        with capture() as lines:
            status, said = await site.fill()
        assert (status, said["state"], said["ranks"]) == (502, "standby", [])
        assert "RuntimeError: EngineCore died" in said["why"]
        assert said["why"] == site.instance.why
        assert said["why"] in str(line_of(lines, "netloader.standby.failed"))

    asyncio.run(scenario())


def test_while_it_is_filled_requests_are_told_at_once_and_a_second_fill_waits() -> None:
    async def scenario() -> None:
        site = Site(ranks := Ranks(LACK))
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            await go_on.wait()

        ranks.when_asked = wait
        ranks.becomes = [HAVE]
        first = asyncio.create_task(site.fill())
        second = asyncio.create_task(site.fill())
        await begun.wait()
        status, said = await site.ask("/v1/models")
        assert (status, said["state"]) == (503, "filling")
        go_on.set()
        assert [(await fill)[0] for fill in (first, second)] == [200, 200]

    asyncio.run(scenario())


def test_ranks_that_do_not_answer_do_not_hold_a_request_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instance, "ASK_S", 0.01)

    async def scenario() -> None:
        site = Site(ranks := Ranks(HAVE))
        busy = asyncio.Event()

        async def wait() -> None:
            await busy.wait()

        ranks.when_asked = wait
        assert (await site.ask("/health"))[0] == 503
        busy.set()
        monkeypatch.setattr(instance, "ASK_S", 60.0)
        assert (await site.ask("/health"))[0] == 200

    asyncio.run(scenario())


def test_an_engine_that_fails_keeps_it_on_standby_with_the_reason() -> None:
    async def scenario() -> None:
        site = Site(ranks := Ranks(HAVE))

        async def fail() -> None:
            raise RuntimeError("dead")

        ranks.when_asked = fail
        status, said = await site.ask("/v1/models")
        assert status == 503
        assert "RuntimeError: dead" in said["error"]["message"]

    asyncio.run(scenario())


def test_it_fills_itself_when_every_rank_finds_a_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(instance, "LOOK_S", 0.001)
    monkeypatch.setattr(instance, "MOST_S", 0.002)
    looked_up = type(settings()).parse({"SOURCE": f"file:{tmp_path}/*"})

    async def scenario() -> None:
        site = Site(ranks := Ranks(LACK), sources=looked_up.sources)
        ranks.found, ranks.becomes = [True, False], [{**LACK, "why": "busy"}]
        up = asyncio.Event()

        async def receive() -> Any:
            await up.wait()

        scope = {"type": "lifespan", "app": site.app}
        life = asyncio.create_task(site.gate(scope, receive, lambda _: asyncio.sleep(0)))
        while len(ranks.asked) < 5:
            await asyncio.sleep(0)
        assert ranks.fills() == [], "one rank finds none"
        ranks.found = [True, True]
        while len(ranks.fills()) < 2:
            await asyncio.sleep(0)
        ranks.becomes = [HAVE]
        while not site.instance.filled:
            await asyncio.sleep(0)
        up.set()
        await life
        assert site.passed == ["lifespan"]

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize(
    ("source", "looks"),
    [
        ((), False),
        ("10.0.0.1:1", False),
        ([{"device_id": 0, "sources": ["10.0.0.1:1"]}], False),
        ([{"device_id": 1, "sources": ["10.0.0.1:1", "a.test:1"]}], True),
        (["10.0.0.1:1", "file:/nvme/llama"], True),
    ],
)
def test_where_no_source_is_looked_up_it_waits_for_a_signal(source: object, looks: bool) -> None:
    parsed = type(settings()).parse({"SOURCE": source} if source else {})

    async def scenario() -> None:
        await Site(ranks := Ranks(HAVE), sources=parsed.sources).instance.watch()
        assert bool(ranks.asked) is looks

    asyncio.run(scenario())


def test_a_websocket_is_closed_and_an_instance_that_is_not_on_standby_is_left_alone() -> None:
    async def scenario() -> None:
        site = Site(Ranks(LACK))
        heard: list[Any] = []

        async def send(message: Any) -> None:
            heard.append(message)

        scope = {"type": "websocket", "path": "/v1/realtime", "app": site.app}
        await site.gate(scope, send, send)  # type: ignore[arg-type]
        assert heard[0]["type"] == "websocket.close"
        site.gate._find = lambda _: None
        await site.gate(scope, send, send)  # type: ignore[arg-type]
        assert site.passed == ["/v1/realtime"]

    asyncio.run(scenario())


def test_a_program_is_refused_until_the_ranks_have_weights() -> None:
    class Engine:
        filled = False

        def collective_rpc(self, method: str) -> list[Any]:
            return [{"rank": 0, "filled": self.filled}]

    engine, known = Engine(), Instance(replace(settings(), standby=True))
    with pytest.raises(StandbyError, match="netloader_fill"):
        known.check(engine)
    engine.filled = True
    known.check(engine)
