"""The error of everything that moves bytes. It carries the reason of the verdict."""

from netloader.errors import NetloaderError
from netloader.fsm.reasons import Reason


class TransferError(NetloaderError):
    """The transfer failed; `reason` and `detail` go into the verdict."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
