"""Jobs that wait for the end of a reload, which fills a model for the first time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netloader.log import emit, get_logger
from netloader.vllm_plugin import LOG_BASE


class Refills:
    """What is to be done when a reload is over that fills a model for the first time."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._depth = 0

    def expect(self, job: Callable[[], None]) -> None:
        """Have a job done when the reload that has begun is over."""
        self._waiting.append(job)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Do what is expected when the outermost of such blocks is over; nothing when it fails."""
        if not self._depth:
            self._waiting.clear()
        self._depth += 1
        try:
            yield
        except BaseException:
            self._waiting.clear()
            raise
        finally:
            self._depth -= 1
        if not self._depth:
            jobs, self._waiting = self._waiting, []
            for job in jobs:
                _harmlessly(job)


REFILLS = Refills()
"""Those of this process: it is one worker."""


def _harmlessly(job: Callable[[], None]) -> None:
    """A bug of ours costs the offer, and not the reload."""
    try:
        job()
    except Exception as error:  # noqa: BLE001 - see above
        emit(get_logger("server", LOG_BASE), "netloader.driver.error", exc_info=error)
