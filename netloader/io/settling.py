"""The end of a fill: values go into the module. Law: they count when the module shows them again.

This comes after every byte was verified, and before the client says so.
"""

from netloader.fsm.messages import Offer
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.intake import Intake
from netloader.io.published import segment_digests
from netloader.io.weights import Weights


def settle(intake: Intake) -> None:
    """Give the module the offer's values, then compare all that it holds with the offer.

    A module may do as it likes with what it is given, so its tensors are hashed once more. Without
    values, nothing is done.

    Raises:
        TransferError: the module does not take them, or shows something else afterwards.
    """
    offer, state = intake.offer, intake.ledger.weights.state
    if state is None or not offer.manifest.values:
        return
    try:
        wanted = state.put(offer.manifest.values)
        again = Weights.of(state.module)
        shown = again.state.canonical() if again.state else ()
    except Exception as error:  # the module's own code runs here
        detail = f"the module does not take its extra state: {type(error).__name__}: {error}"
        raise TransferError(Reason.TRANSFER_FAILED, detail) from error
    _compare(offer, again, wanted, shown, intake)


def _compare(
    offer: Offer,
    again: Weights,
    wanted: tuple[tuple[str, str], ...],
    shown: tuple[tuple[str, str], ...],
    intake: Intake,
) -> None:
    for (name, value), (_, other) in zip(wanted, shown, strict=False):
        if value != other:
            detail = f"the module does not show the {name} that it was given"
            raise TransferError(Reason.DIGEST_MISMATCH, detail)
    if difference := again.manifest.difference(offer.manifest):
        raise TransferError(Reason.MANIFEST_MISMATCH, f"with its extra state, {difference}")
    digests = segment_digests(again, intake.segments, offer.digest_algorithm, 1)
    if digests != offer.segment_digests:
        detail = "the module's tensors are others since it was given its extra state"
        raise TransferError(Reason.DIGEST_MISMATCH, detail)
