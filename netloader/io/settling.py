"""The end of a fill: values go into the store, and are read back from it.

This comes after every byte was verified, and before the client sends `verified`.
"""

from netloader.fsm.reasons import Reason
from netloader.io.comparing import segment_digests
from netloader.io.failure import TransferError
from netloader.io.store.ledger import Lease


def settle(lease: Lease) -> None:
    """Give the store the offer's values, compare all that it holds with the offer, and keep it.

    A module may change its tensors when it takes values, so they are hashed once more. Without
    values, nothing is compared.

    Raises:
        TransferError: the store does not take the values, shows something else afterwards, or
            cannot be kept.
    """
    offer, store = lease.offer, lease.ledger.store
    manifest = offer.manifest or store.manifest
    if manifest.values:
        again = store.take_values(manifest.values)
        if difference := again.manifest.difference(manifest):
            raise TransferError(Reason.MANIFEST_MISMATCH, f"with its extra state, {difference}")
        digests = segment_digests(again, lease.segments, offer.digest_algorithm, 1)
        if digests != offer.segment_digests:
            detail = "the module's tensors are others since it was given its extra state"
            raise TransferError(Reason.DIGEST_MISMATCH, detail)
    store.complete()
