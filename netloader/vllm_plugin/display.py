"""What people see while weights arrive."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

BAR_FORMAT = (
    "{desc}: {percentage:3.0f}% Completed | {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_fmt}]\n"
)
"""As vLLM's bars: one line an update, because workers' output is prefixed line by line."""


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Callable[[int, int], None]]:  # noqa: FBT001 - tqdm's
    """A progress bar in vLLM's style; yields what to call with bytes verified and bytes in all."""
    progress = tqdm(
        total=total,
        desc="Receiving weights",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not shown,
        mininterval=0.5,
        bar_format=BAR_FORMAT,
    )
    with progress:
        yield lambda done, _: _advance(progress, done)


def _advance(progress: "tqdm[None]", done: int) -> None:
    """Set a bar to `done`; a source with other digests starts over, so it may go back."""
    progress.update(done - progress.n)
