"""Watches weights on offer for changes that no watched method makes.

Each published model is audited from time to time, at a hundredth of one core. A model that a
session or an audit finds changed is withdrawn at once. The new bytes are offered only if they are
all that the engine uses: nothing that its kernels made of the weights follows from a tensor that
changed, and they are the same at two moments, some seconds apart.
"""

import threading
from functools import partial
from typing import Protocol

from netloader.errors import NetloaderError
from netloader.io.background import in_background
from netloader.io.clock import monotonic
from netloader.io.published import PublishedModel
from netloader.io.store.module import ModuleStore
from netloader.log import emit, get_logger
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.serve.served_model import KNOWN_S, Changed, ServedModel

REST = 100
"""The pause after an audit, as a multiple of its duration: one per cent of one core."""
AT_LEAST_S = 10.0
"""The least pause after an audit."""
APART_S = 2.0
"""Seconds between two examinations of weights that were changed unannounced."""
EXAMINATIONS = 30
"""After so many examinations that all differed, the weights are no longer offered."""


class NotOnOfferError(Exception):
    """A published model was fenced or replaced meanwhile, so its end need not be handled."""


class Publisher(Protocol):
    """What publishes one model, as its change monitor needs it."""

    served: ServedModel
    proven: bool
    """Whether an audit has found every byte as it was digested."""

    def replace(self, published: PublishedModel, why: str) -> PublishedModel | None:
        """Withdraw, and put something in its place that is not sealed yet."""

    def look(self, weights: ModuleStore) -> tuple[str, ...]:
        """The digests of weights that are not on offer yet."""

    def confirm(self, successor: PublishedModel, digests: tuple[str, ...]) -> None:
        """Seal what was put in the place of others."""

    def lose(self, why: str) -> None:
        """Offer nothing until it is renewed."""


class ChangeMonitor:
    """Watches what is published of one model for changes."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def keep(self, published: PublishedModel) -> None:
        """Audit a published model from time to time, as long as it is offered."""
        audit = partial(self._audit, published)
        threading.Thread(target=audit, name="netloader-monitor", daemon=True).start()

    def _audit(self, published: PublishedModel) -> None:
        """Hash every byte on a thread of low priority; then pause a hundred times as long.

        The first time this also shows that post-processing left every byte as it was digested.
        """
        while not published.withdrawn:
            took: list[float] = []
            look = partial(_look, published, took)
            thread = in_background("netloader-audit", look, published.unproven)
            if thread.ident is not None:  # else it could not be started, and that was told
                thread.join()
            if took and not published.withdrawn:
                self._publisher.proven = True
            published.over(max(REST * sum(took), AT_LEAST_S))

    def changed(self, published: PublishedModel, why: str) -> bool:
        """Handle weights that were changed by other methods than those watched.

        Returns:
            Whether newer ones will be offered, if all goes well.
        """
        try:
            successor = self._publisher.replace(published, why)
        except NotOnOfferError:
            return False
        except Exception as error:  # noqa: BLE001 - the session must learn that this is over
            emit(get_logger("server", LOG_BASE), "netloader.driver.error", exc_info=error)
            return False
        if successor is None:
            return False
        in_background("netloader-renewal", partial(self._follow, successor, why))
        return True

    def _follow(self, successor: PublishedModel, changed: str) -> None:
        """Examine weights until they stay the same, then offer them; or log why not."""
        if successor.withdrawn:  # fenced before this thread ran
            return
        served, before = self._publisher.served, tuple[str, ...]()
        why = "they keep changing"
        for _ in range(EXAMINATIONS):
            try:
                weights = served.renew(Changed())
            except Exception as error:  # noqa: BLE001 - a bug here must not leave clients waiting
                known = isinstance(error, NetloaderError | InterruptedError)
                why = str(error) if known else f"they cannot be examined: {type(error).__name__}"
                break
            now = self._publisher.look(weights)
            if now and now == before and not served.usage.quick():
                self._publisher.confirm(successor, now)
                return
            before = now
            if successor.over(APART_S):  # fenced, or the model is gone
                return
        if not successor.withdrawn:
            self._publisher.lose(f"{changed}: {why}")


def _look(published: PublishedModel, took: list[float]) -> None:
    """Audit, and append how many seconds that took."""
    published.digests(KNOWN_S)
    began = monotonic()
    published.audit()
    published.check()
    took.append(monotonic() - began)
