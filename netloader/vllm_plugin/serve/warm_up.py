"""Offers that wait for their engine. Law: nothing of ours is on a device while graphs are captured.

While an engine captures graphs, other threads must not copy or allocate on its device (CUDA:
cudaStreamBeginCapture, mode global; CANN: aclmdlRICaptureBegin, the same), or the capture fails and
the engine does not start. And before that it measures how much memory is free, of which the
communicator of a transfer would be missing for good. Both are over when a worker has warmed up.
"""

import threading
from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

from netloader.io.device import CPU

METHOD = "compile_or_warm_up_model"
"""What an engine calls on its worker last, before it serves."""
Offer: TypeAlias = Callable[[nn.Module], None]


class WarmUp:
    """The offers of a worker process, until it is warm."""

    def __init__(self) -> None:
        self._waiting: WeakKeyDictionary[nn.Module, Offer] = WeakKeyDictionary()
        self._settling: WeakKeyDictionary[nn.Module, Callable[[], None]] = WeakKeyDictionary()
        self._awaited = False
        self._lock = threading.Lock()

    def expect(self) -> None:
        """Say that `done` will be called."""
        with self._lock:
            self._awaited = True

    def offer(self, model: nn.Module, device: torch.device, offer: Offer) -> None:
        """Offer a model now, or when the engine of its device is warm."""
        with self._lock:
            if self._awaited and device != CPU:
                self._waiting[model] = offer
                return
        offer(model)

    def settle(self, model: nn.Module, settle: Callable[[], None]) -> None:
        """Call `settle` now, or when the engine is warm: until then it still changes its models."""
        with self._lock:
            if self._awaited:
                self._settling[model] = settle
                return
        settle()

    def done(self) -> None:
        """Make the offers that have waited; whatever comes later is made at once."""
        with self._lock:
            self._awaited = False
            waiting, settling = list(self._waiting.items()), list(self._settling.values())
            self._waiting.clear()
            self._settling.clear()
        for settle in settling:
            settle()
        for model, offer in waiting:
            offer(model)


WORKER = WarmUp()
"""That of this process: it is one worker."""
