"""Names of roles, layouts, and of the fields and facts that servers and clients compare."""

import re
import sys
from importlib import metadata

import torch
import vllm
from vllm.platforms import current_platform

TARGET, DRAFT = "target", "draft"
RAW, PROCESSED = "raw", "processed"

FILE = "file."
"""How the names of fields begin that are files of the model's folder."""

_SNAPSHOT = re.compile(r"/models--(?P<name>[^/]+)/snapshots/[^/]+/?$")

UNTIED = "untied_by_checkpoint"
"""The fact a client without checkpoint files cannot find out: the files hold an lm_head."""
LAYOUT = "layout"
"""The fact that tells a client how to build its model: `raw` or `processed`."""
STATE = "load_state"
"""The fact that carries what the server's `load_weights` left behind, see `load_state`."""
UNFILLED = "unfilled"
"""The fact that names, as a JSON list, the parameters of a draft that no checkpoint fills."""
FILLED = "filled"
"""The fact that names, as a JSON list, the tensors outside parameters and persistent buffers that
the server's `load_weights` has filled."""
CONSTRUCTED = "constructed"
"""The fact that says what else the server's model was constructed to hold, see `provenance`."""


def model_name(path: str, name: str | None) -> str:
    """The operator's name of a model, or the model argument.

    vLLM puts the path of a snapshot in its place when HF_HUB_OFFLINE is set. Names of the hub have
    no `--` in them, and in its cache that stands for the slash.
    """
    found = _SNAPSHOT.search(path)
    return name or (found["name"].replace("--", "/") if found else path)


def kernel_versions() -> dict[str, str]:
    """The fields that count in the processed layout alone: kernels differ with them."""
    return {
        "vllm": str(vllm.__version__),
        "torch": str(torch.__version__),
        "device_name": str(current_platform.get_device_name()),
        "platform": _platform(type(current_platform).__module__),
    }


def _platform(module: str) -> str:
    """The packages with the kernels of a platform outside vLLM, with their versions."""
    package = module.partition(".")[0]
    outside = [name for name in (package, "torch_npu") if name != "vllm" and name in sys.modules]
    return ", ".join(f"{name} {_version(name)}" for name in outside)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # its distribution has another name
        return str(getattr(sys.modules[package], "__version__", "unknown"))
