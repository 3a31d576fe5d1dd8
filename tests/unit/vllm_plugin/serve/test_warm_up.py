"""Offers of weights on a device wait until the engine has measured, captured and warmed up."""

import gc
import weakref

import torch
from torch import nn

from netloader.vllm_plugin.serve.warm_up import WarmUp

DEVICE = torch.device("cuda:0")


def test_an_offer_on_a_device_waits_until_its_engine_is_warm() -> None:
    worker, offered, model = WarmUp(), list[nn.Module](), nn.Module()
    worker.expect()

    worker.offer(model, DEVICE, offered.append)
    assert offered == []
    worker.done()

    assert offered == [model]
    worker.done()
    assert offered == [model]


def test_a_cpu_has_no_graphs_to_wait_for() -> None:
    worker, offered, model = WarmUp(), list[nn.Module](), nn.Module()
    worker.expect()

    worker.offer(model, torch.device("cpu"), offered.append)

    assert offered == [model]


def test_where_no_worker_warms_up_nothing_waits() -> None:
    worker, offered, model = WarmUp(), list[nn.Module](), nn.Module()

    worker.offer(model, DEVICE, offered.append)

    assert offered == [model]


def test_what_is_loaded_into_a_warm_engine_is_offered_at_once() -> None:
    worker, offered, model = WarmUp(), list[nn.Module](), nn.Module()
    worker.expect()
    worker.done()

    worker.offer(model, DEVICE, offered.append)

    assert offered == [model]


def test_an_offer_that_waits_does_not_keep_its_model_alive() -> None:
    worker, offered, model = WarmUp(), list[nn.Module](), nn.Module()
    worker.expect()
    worker.offer(model, DEVICE, offered.append)
    seen = weakref.ref(model)

    del model
    gc.collect()
    worker.done()

    assert seen() is None
    assert offered == []
