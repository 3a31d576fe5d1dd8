"""What every process of the lane does before anything else is imported.

Python imports this module by its name, because its folder is in PYTHONPATH. It adds the packages of
vLLM's own environment behind all others, and it stands in for two packages that cannot be had here.
"""

import importlib
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

BEHIND = "ASCEND_PACKAGES_BEHIND"
"""Folders of packages that are used where the environment has none of its own."""
NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _BeforeTorchvision(MetaPathFinder):
    """Defines two operators: the compiled half of torchvision does not load beside a CPU torch."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            library = importlib.import_module("torch.library")
            for name in ("nms", "qnms"):
                library.define(f"torchvision::{name}", NMS)


class _Kernels(ModuleType):
    """Any name can be imported from it, and none can be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(f"{self.__name__}.{name} is not simulated")

        return missing


class _FlaNpu(MetaPathFinder, Loader):
    """fla_npu: compiled operators of gated delta nets, a part of vllm-ascend's images only."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] == "fla_npu":
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _Kernels(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


if BEHIND in os.environ:
    sys.path.extend(os.environ[BEHIND].split(os.pathsep))
    sys.meta_path.insert(0, _BeforeTorchvision())
    sys.meta_path.append(_FlaNpu())
