"""Offers that wait until their engine has warmed up.

While an engine captures graphs, other threads must not copy or allocate on its device (CUDA:
cudaStreamBeginCapture, mode global; CANN: aclmdlRICaptureBegin, the same), or the capture fails and
the engine does not start. Before that it measures how much memory is free; what the communicator of
a transfer takes then would be missing permanently. Both are over when a worker has warmed up.
"""

import threading
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from netloader.io.device import CPU
from netloader.vllm_plugin.serve.by_model import ByModel

Offer: TypeAlias = Callable[[nn.Module], None]


class WarmUp:
    """What waits until a worker is warm. Safe to use from any thread."""

    def __init__(self) -> None:
        self._waiting: ByModel[Offer] = ByModel()
        self._settling: ByModel[Callable[[], None]] = ByModel()
        self._awaited = self._over = False
        self._lock = threading.Lock()

    def expect(self) -> None:
        """Say that `done` will be called, if it was not called before."""
        with self._lock:
            self._awaited = not self._over

    def offer(self, model: nn.Module, device: torch.device, offer: Offer) -> None:
        """Offer a model now, or when the engine of its device is warm."""
        with self._lock:
            if self._awaited and device != CPU:
                self._waiting.put(model, offer)
                return
        offer(model)

    def settle(self, model: nn.Module, settle: Callable[[], None]) -> None:
        """Call `settle` now, or when the engine is warm: until then it still changes its models."""
        with self._lock:
            if self._awaited:
                self._settling.put(model, settle)
                return
        settle()

    def done(self) -> None:
        """Make the offers that have waited; those that come later are made at once."""
        with self._lock:
            self._awaited, self._over = False, True
            waiting, settling = self._waiting.items(), self._settling.items()
            self._waiting.clear()
            self._settling.clear()
        for _, settle in settling:
            settle()
        for model, offer in waiting:
            offer(model)
