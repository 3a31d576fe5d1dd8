"""Peak memory of a client beside its model: `python benchmarks/memory.py`.

A fresh process builds a model of 1 GiB and touches it; what it holds then is the baseline. The
kernel's high-water mark of resident memory is started anew, the model is filled, and the mark is
read: what lies above the baseline is what receiving cost, staging and threads included.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.contenders.own import algorithms, offer
from benchmarks.sender import HOST, sending
from benchmarks.workload import GIB, IDENTITY, KIB, LARGE, MIB, Llama, wipe
from netloader.io import ClientOptions, Endpoint, fill

TRANSPORTS = ("tcp", "gloo")


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (at most since the mark was set) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * KIB
    raise KeyError(field)


def cost(transport: str, lanes: int, port: int) -> tuple[int, int]:
    """Bytes held before filling, and the most held while filling beyond them."""
    model = Llama()
    wipe(model)
    options = ClientOptions(transports=(transport,), lanes=lanes)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is reset to what is held now
    outcome = fill(model, [Endpoint(HOST, port)], IDENTITY, options)
    assert outcome.ok, outcome.history()
    return before, resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a client beside its model.")
    parser.add_argument("--lanes", type=int, default=ClientOptions().lanes)
    lanes: int = parser.parse_args().lanes
    print(f"a model of {GIB // MIB} MiB, {lanes} lanes (tcp), one client process each")
    with sending(LARGE) as sender:
        _show(sender.do(offer, algorithms()[0]), lanes)


def _show(port: int, lanes: int) -> None:
    context = multiprocessing.get_context("spawn")
    # One task a child: the peak of one transport must not be the baseline of the next.
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as clients:
        for transport in TRANSPORTS:
            before, extra = clients.submit(cost, transport, lanes, port).result()
            print(
                f"{transport:<6}{before / MIB:8.0f} MiB before, {extra / MIB:6.1f} MiB more at peak"
            )


if __name__ == "__main__":
    main()
