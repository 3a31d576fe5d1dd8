"""A page of metrics at a port of its own. It never ends a start: a port that is taken is told."""

from collections.abc import Callable

from netloader.log import Logger, emit
from netloader.metrics.recorder import record


def open_page(host: str, port: int, logger: Logger) -> Callable[[], None]:
    """Serve the series of this process at `http://host:port/metrics`; an empty host is all.

    Returns:
        What closes the port again. Does nothing if there is no page, which is logged.
    """
    try:
        return _opened(host or "0.0.0.0", port)  # noqa: S104 - as it is asked for
    except (OSError, OverflowError) as error:
        why, remedy = str(getattr(error, "strerror", None) or error), "choose another METRICS_PORT"
    except ImportError:
        why, remedy = "prometheus_client is not installed", "install 'vllm-netloader[metrics]'"
    fields = {
        "network.local.address": host or "*",
        "network.local.port": port,
        "netloader.detail": why,
        "netloader.remedy": remedy,
    }
    emit(logger, "netloader.metrics.failed", fields)
    return lambda: None


def _opened(host: str, port: int) -> Callable[[], None]:
    from prometheus_client import start_http_server

    record()
    server, thread = start_http_server(port, host)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
