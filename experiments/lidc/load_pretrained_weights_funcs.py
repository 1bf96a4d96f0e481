"""3D weights of others into the backbone of a network of :mod:`acsconv.models`: videos, and medical volumes.

Both projects save ``{"state_dict": {"module.conv1.weight": ...}}`` of a ResNet with 3D kernels, whose names behind
``module.`` are torchvision's; :data:`VIDEO` and :data:`MEDNET` say what else to know. Their ResNet-18 has shortcuts
without parameters ("A"). A backbone with ``shortcut="A"`` takes all of its weights from the file; one with ``"B"``, as
ACSConv's authors used, keeps its own new 1x1 convolutions and their norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from acsconv.models.pretrained import load_pretrained, unwrap
from torch import nn

from experiments.mylib.files import read_checkpoint


class Published(NamedTuple):
    """A published file: where it comes from, and beginnings of names that are not of the backbone."""

    source: str
    heads: tuple[str, ...]


VIDEO = Published(
    "resnet-18-kinetics.pth (Hara et al., CVPR 2018) is linked in https://github.com/kenshohara/3D-ResNets-PyTorch.",
    heads=("fc.",),
)
MEDNET = Published(
    "pretrain/resnet_18_23dataset.pth (Chen et al., Med3D, 2019) is in MedicalNet_pytorch_files.zip, linked in "
    "https://github.com/Tencent/MedicalNet.",
    heads=("conv_seg.",),
)


def load_video_pretrained_weights(model: nn.Module, video_resnet18_pretrain_path: str | Path) -> nn.Module:
    """ResNet-18 trained on the videos of Kinetics, into ``model.backbone``; see :func:`_load`."""
    return _load(model, video_resnet18_pretrain_path, VIDEO)


def load_mednet_pretrained_weights(model: nn.Module, mednet_resnet18_pretrain_path: str | Path) -> nn.Module:
    """ResNet-18 of MedicalNet, trained on 23 medical data sets, into ``model.backbone``; see :func:`_load`."""
    return _load(model, mednet_resnet18_pretrain_path, MEDNET)


def _load(model: nn.Module, path: str | Path, published: Published) -> nn.Module:
    """Loads the file into ``model.backbone`` (``conv="3d"``), and returns ``model``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or does not fit; the message names the file, and every entry. The model is unchanged.
    """
    backbone, checkpoint = model.backbone, read_checkpoint(path, published.source)
    try:
        state = unwrap(checkpoint)
        if not any(".downsample." in name for name in state):
            own = backbone.state_dict().items()
            state |= {name: value for name, value in own if ".downsample." in name}
        load_pretrained(backbone, state, "resnet18", heads=published.heads)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model
