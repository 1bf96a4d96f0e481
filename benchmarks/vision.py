"""Makes torchvision importable beside a PyTorch without CUDA.

torchvision's compiled part may be linked to a CUDA build of PyTorch. Beside a CPU build it does not load, and
torchvision, and with it timm and segmentation_models_pytorch, fails at import for want of two operators' schemas. Call
:func:`prepare_torchvision` before the first import of any of them; it does nothing where nothing is wrong.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: list[torch.library.Library] = []  # the schemas live as long as the object


def prepare_torchvision() -> None:
    """Declares the operators that torchvision looks for, if its own library does not load."""
    spec = importlib.util.find_spec("torchvision")
    # Asked of torch, not of _library: scripts beside this file know it by another name than the experiments do.
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _library.append(library)
