"""The digests of a folder's weights: those of its card, or computed now."""

from collections.abc import Callable

from netloader.cli.answers import CommandError
from netloader.cli.bars import bar
from netloader.cli.codes import Code
from netloader.fsm.manifest import Progress, segments_of
from netloader.io.comparing import WithdrawnError, difference, digests_while
from netloader.io.cores import cores
from netloader.io.failure import TransferError
from netloader.io.stopping import CancelToken
from netloader.io.store.parts import Part


def computed(part: Part, algorithm: str, segment_bytes: int, stop: CancelToken) -> Progress:
    """Hash all of a part on every core, with a bar, unless `stop` is set meanwhile.

    Raises:
        CommandError: it was stopped, or a file cannot be read.
    """
    manifest = part.store.manifest
    segments = segments_of(manifest, segment_bytes)
    with bar(f"hashing {part.folder.name}") as report:
        wanted = _counting(report, manifest.nbytes, segment_bytes, stop)
        try:
            digests = digests_while(wanted, part.store, segments, algorithm, cores())
        except WithdrawnError as error:
            raise CommandError(Code.INTERRUPTED, "interrupted") from error
        except TransferError as error:
            raise CommandError(Code.FAILED, f"{part.folder}: {error.detail}") from error
    return Progress(algorithm, segment_bytes, digests)


def compare(part: Part, proof: Progress, stop: CancelToken) -> None:
    """Refuse a part whose files hold other bytes than its card has digests of.

    Raises:
        CommandError: they do, and among which tensors; or as `computed`.
    """
    now = computed(part, proof.digest_algorithm, proof.segment_bytes, stop)
    manifest = part.store.manifest
    segments = segments_of(manifest, proof.segment_bytes)
    if why := difference(manifest, segments, proof.segment_digests, now.segment_digests):
        raise CommandError(Code.FAILED, f"{part.folder}: {why}; copy the weights again")


def _counting(
    report: Callable[[int, int], None], nbytes: int, segment_bytes: int, stop: CancelToken
) -> Callable[[], None]:
    """What is called before each segment, from any thread: moves the bar, and may end the work."""
    begun: list[None] = []

    def wanted() -> None:
        if stop.is_set():
            raise WithdrawnError("interrupted")
        report(min(len(begun) * segment_bytes, nbytes), nbytes)
        begun.append(None)

    return wanted
