"""The networks of MedMNIST3D's published experiments: ResNets for small images, made 3D by a converter."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchvision.models import resnet18, resnet50

from experiments.mylib.files import read_checkpoint
from experiments.mylib.networks import to_3d

MODELS = {"resnet18": resnet18, "resnet50": resnet50}
SOURCE = "Weights of the published experiments are linked in https://github.com/MedMNIST/experiments."
#: Parts of names in the published files of weights, and what torchvision calls them.
NAMES = {"shortcut.": "downsample.", "linear.": "fc."}


def build_2d(model_flag: str, in_channels: int, num_classes: int) -> nn.Module:
    """torchvision's ResNet for images of 28 pixels: its stem is a 3x3 convolution without stride, without a pooling.

    Weights are drawn as PyTorch's layers draw them, as in the published experiments, not as torchvision's networks do.
    """
    network = MODELS[model_flag](num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return network


def build(
    model_flag: str, conv: str, in_channels: int, num_classes: int, pretrained_3d: str = "i3d"
) -> nn.Module:
    """[N, in_channels, D, H, W] -> logits [N, num_classes].

    Args:
        model_flag: one of :data:`MODELS`.
        conv: one of :data:`experiments.mylib.networks.CONVS`.
        pretrained_3d: with ``Conv3d``: ``'i3d'``, random 2D kernels, inflated, as published; else random 3D kernels.
    """
    return to_3d(build_2d(model_flag, in_channels, num_classes), conv, pretrained=pretrained_3d == "i3d")


def load_published(network: nn.Module, path: str | Path) -> None:
    """Loads ``{"net": state_dict}``, as the published experiments save it, or a plain state_dict of this network.

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged, or of another network; the message names it.
    """
    state = read_checkpoint(path, SOURCE)
    state = state.get("net", state)
    try:
        network.load_state_dict({_renamed(name): value for name, value in state.items()})
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit the network: {error}") from error


def _renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name
