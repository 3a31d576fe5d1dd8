"""Stands in for vllm-ascend, whose plugin registers a load format of the same name as ours.

As in the real one, the entry point's function imports a module, and the import registers.
"""


def register_model_loader() -> None:
    from .model_loader.netloader import register_netloader

    register_netloader()
