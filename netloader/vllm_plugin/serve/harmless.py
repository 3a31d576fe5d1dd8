"""Keep errors of netloader away from the engine."""

from collections.abc import Iterator
from contextlib import contextmanager

from netloader.log import emit, get_logger
from netloader.vllm_plugin.log_base import LOG_BASE


@contextmanager
def harmless() -> Iterator[None]:
    """Log an exception that leaves the block, and suppress it, so that the engine goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - see above
        emit(get_logger("server", LOG_BASE), "netloader.driver.error", exc_info=error)
