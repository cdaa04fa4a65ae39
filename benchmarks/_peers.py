"""Peers that benchmarks compare with, loaded although parts of them cannot be here.

open_clip imports torchvision and timm at its top. torchvision from PyPI is linked against CUDA and does not load beside a
torch without it, and neither is needed for open_clip's own towers. So a torchvision that loads, possibly after its
missing operator is declared, is used; otherwise it and timm are replaced by empty stand-ins, whose classes exist and
do nothing. Install the peer without its requirements:

    pip install --no-deps open_clip_torch==3.3.0
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

OPEN_CLIP_VERSION = "3.3.0"


class _AnyName(type):
    """A class that has every attribute, e.g. InterpolationMode.BICUBIC."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _AnyName(name, (), {"__init__": lambda self, *arguments, **options: None})
        setattr(self, name, value)
        return value


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for packages that cannot be imported, and for everything below them."""

    def __init__(self, *packages: str):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        return None


def load_open_clip() -> types.ModuleType:
    """The module `open_clip`.

    Raises:
        SystemExit: with one line that says how to install it.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise SystemExit(f"this benchmark compares with open_clip: pip install --no-deps open_clip_torch=={OPEN_CLIP_VERSION}")
    missing = [name for name in ("torchvision", "timm") if not _loads(name)]
    if missing:
        sys.meta_path.insert(0, _StandInFinder(*missing))
    module = importlib.import_module("open_clip")
    if module.__version__ != OPEN_CLIP_VERSION:
        print(f"note: open_clip is {module.__version__}, the stated figures are for {OPEN_CLIP_VERSION}", file=sys.stderr)
    return module


def _loads(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        return False
    if name == "torchvision":
        _declare_nms()
    try:
        importlib.import_module(name)
        if name == "torchvision":
            importlib.import_module("torchvision.transforms")
    except Exception:  # a half-loaded package is as good as none
        for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[loaded]
        return False
    return True


def _declare_nms() -> None:
    """Declare the operator that torchvision's Python parts refer to on import and that its CUDA library would bring."""
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        global _library  # the declaration lives as long as this object
        _library = torch.library.Library("torchvision", "FRAGMENT")
        _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
