"""Jobs for the end of a reload that fills a model for the first time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netloader.vllm_plugin.serve.harmless import harmless


class AfterReload:
    """The jobs that wait for the end of the reload under way. Used from one thread at a time."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._depth = 0

    def add(self, job: Callable[[], None]) -> None:
        """Have a job done when the reload under way has ended well."""
        self._waiting.append(job)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """A reload; when the outermost such block ends, the jobs are done, or dropped if it fails.

        An error in a job is logged and costs the offer, not the reload.
        """
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
                with harmless():
                    job()
