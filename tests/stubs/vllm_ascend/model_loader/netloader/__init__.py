"""As in vllm-ascend."""


def register_netloader() -> None:
    from . import netloader  # noqa: F401 - the import registers
