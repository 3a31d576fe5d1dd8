"""Whether an instance has its weights, as the process knows that has its clients.

The ranks know it. This process asks them while it does not know better, and a fill that it starts
tells it. Several processes may serve the clients of one instance: each asks for itself.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

from netloader.discovery.names import Address
from netloader.log import emit, get_logger
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.config.sources import finders_of
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.serve.standing import Report, StandbyError

WAITS: Final = (
    "this instance is on standby: all but the weights is ready. Fill it with "
    "`netloader fill HOST:PORT SOURCE`, from a program with "
    "collective_rpc('netloader_fill'), or start a source where SOURCE looks for one"
)
FILLING: Final = "this instance is being filled with its weights; ask again in a moment"
ASK_S: Final = 1.0
"""How long a request waits to hear whether there are weights. A rank that is being filled does not
answer before that is over."""
LOOK_S: Final = 2.0
"""Seconds between two looks for a source."""
MOST_S: Final = 60.0
"""The most seconds between two tries where sources are found, and fill nothing."""


class Instance:
    """What one process knows of its instance. Used from one thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.filled = False
        """Whether all ranks hold weights. Once true, it stays so."""
        self.why = ""
        """Why the last fill failed."""

    def learn(self, reports: Sequence[Report]) -> None:
        """Note what all ranks hold; one that was not filled counts for all."""
        self.filled = self.filled or (bool(reports) and all(each["filled"] for each in reports))
        problems = [f"rank {each['rank']}: {each['why']}" for each in reports if each.get("why")]
        self.why = "" if self.filled else "; ".join(problems) or self.why

    def refuse(self) -> None:
        """End a request.

        Raises:
            StandbyError: always.
        """
        raise StandbyError(f"{WAITS}{self.why and f'. The last fill failed: {self.why}'}")

    def check(self, engine: Any) -> None:
        """Refuse a request of a program while there are no weights.

        Raises:
            StandbyError: there are none.
        """
        if not self.filled:
            self.learn(engine.collective_rpc("netloader_standing"))
        if not self.filled:
            self.refuse()


class ServedInstance(Instance):
    """As `Instance`, for an engine that is used from an event loop. Used from that loop only."""

    def __init__(self, settings: Settings, engine: Any) -> None:
        super().__init__(settings)
        self._engine = engine
        self._turn = asyncio.Lock()
        self._asking: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """What it does: `standby`, `filling` or `filled`."""
        return "filled" if self.filled else "filling" if self._turn.locked() else "standby"

    @property
    def sentence(self) -> str:
        """What a request is told while there are no weights."""
        failed = f". The last fill failed: {self.why}" if self.why else ""
        return FILLING if self._turn.locked() else f"{WAITS}{failed}"

    async def ask(self) -> bool:
        """Whether there are weights; false where the ranks do not say so within ASK_S."""
        if not self.filled and not self._turn.locked():
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._learn())
            await asyncio.wait({self._asking}, timeout=ASK_S)
        return self.filled

    async def _learn(self) -> None:
        self.learn(await self._ranks("netloader_standing"))

    async def _ranks(self, method: str, *args: object) -> list[Any]:
        """What each rank answers; nothing where the engine fails, and `why` says how."""
        try:
            answers: list[Any] = await self._engine.collective_rpc(method, args=args)
        except Exception as error:  # noqa: BLE001 - of vLLM's; without an answer it stays on standby
            why = f"the engine does not answer: {type(error).__name__}: {error}"
            if why != self.why:  # requests ask each time
                fields = {"netloader.detail": why}
                emit(get_logger("client", LOG_BASE), "netloader.standby.failed", fields)
            self.why = why
            return []
        return answers

    async def require(self) -> None:
        """Refuse a request while there are no weights.

        Raises:
            StandbyError: there are none.
        """
        if not self.filled and not await self.ask():
            self.refuse()

    async def fill(self, sources: Sequence[str] = ()) -> list[Report]:
        """Have all ranks filled, and say what each reports; one call at a time.

        Without reports the engine has failed; `why` says how.
        """
        async with self._turn:
            reports: list[Report] = await self._ranks("netloader_fill", list(sources))
            self.learn(reports)
            return reports

    async def watch(self) -> None:
        """Fill the instance when every rank finds a source; returns when it is filled.

        Returns at once where all sources are written addresses, which are asked on a signal only.
        """
        sources = self.settings.sources
        finders = (finder for rank in sources for finder in finders_of(sources, rank))
        if all(isinstance(finder, Address) for finder in finders):
            return
        pause_s = LOOK_S
        while not await self.ask():
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            pause_s = LOOK_S if await self._looked() else min(2 * pause_s, MOST_S)

    async def _looked(self) -> bool:
        """Look for sources and be filled; false when some were found that did not fill it."""
        found = await self._ranks("netloader_finds_sources")
        if found and not all(found):
            return True
        if found:
            await self.fill()
        return self.filled
