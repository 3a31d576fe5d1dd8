"""Say why weights are not served."""

from netloader.log import Logger, emit


def refuse(logger: Logger, why: str, remedy: str) -> None:
    """Log why weights are not served, and what would help."""
    fields = {"netloader.detail": why, "netloader.remedy": remedy}
    emit(logger, "netloader.server.refused", fields)
