"""Stands in for vllm-ascend, whose plugin registers a load format of the same name as ours.

As in the real one, the entry point's function patches vLLM, then imports a module, and the import
registers.
"""

DONE: list[str] = []
"""What has happened in this process, in order."""


def register_model_loader() -> None:
    if "patched" not in DONE:
        DONE.append("patched")
    from .model_loader.netloader import register_netloader

    register_netloader()
