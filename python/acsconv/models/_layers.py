"""What the native networks share: the convolutions they can be made of, and the heads of acsconv 0.1.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..memory import make_memory_efficient
from ..operators import ACSConv, Conv2_5d, SoftACSConv
from ..operators.base_acsconv import _ACSConv

#: A convolution by its name, or any callable with the arguments of ``nn.Conv3d``.
Conv = str | Callable[..., nn.Module]

CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "acs": ACSConv,
    "soft": SoftACSConv,
    "mean": partial(SoftACSConv, mean=True),
    "2.5d": Conv2_5d,
    "3d": nn.Conv3d,
}


def convolution(conv: Conv) -> Callable[..., nn.Module]:
    """The class to build layers of: one of :data:`CONVOLUTIONS` by name, or ``conv`` itself if it is callable.

    Raises:
        ValueError: another name.
    """
    if callable(conv):
        return conv
    if conv not in CONVOLUTIONS:
        raise ValueError(
            f"conv: expected one of {', '.join(map(repr, CONVOLUTIONS))} or a class, got {conv!r}"
        )
    return CONVOLUTIONS[conv]


def is_convolution(module: nn.Module) -> bool:
    """Whether the module is one of :data:`CONVOLUTIONS`, or derived from one."""
    return isinstance(module, (_ACSConv, nn.Conv3d))


def chosen(backbones: Mapping[str, Callable], name: str) -> Callable:
    """The entry ``name`` of ``backbones``; a ValueError that lists them if there is none."""
    if name not in backbones:
        raise ValueError(f"backbone: expected one of {', '.join(map(repr, backbones))}, got {name!r}")
    return backbones[name]


class FCNHead(nn.Sequential):
    """Two convolutions: [N, in_channels, D, H, W] -> [N, channels, D, H, W]."""

    def __init__(self, in_channels: int, channels: int, conv: Conv = "acs") -> None:
        layer, middle = convolution(conv), in_channels // 4
        super().__init__(
            layer(in_channels, middle, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(),
            layer(middle, channels, kernel_size=1),
        )


class FCN(nn.Module):
    """Segmentation: the backbone's features at three resolutions, merged from the deepest up by 1x1 convolutions.

    Args:
        backbone: [N, C, D, H, W] -> (deepest, middle, first features), with the attribute ``feature_channels``.
        num_classes: channels of the output.
        widths: channels behind the two merges.
        memory_efficient: see :func:`acsconv.memory.make_memory_efficient`.

    Shape:
        input [N, C, D, H, W]; output [N, num_classes, D, H, W].

    Parameters, their names and outputs are those of 0.1.1's ``FCNResNet``, ``FCNVGG`` and ``FCNDenseNet``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        widths: Sequence[int],
        conv: Conv,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        layer = convolution(conv)
        deepest, middle, first = backbone.feature_channels
        self.backbone = backbone
        self.conv1 = layer(middle + deepest, widths[0], kernel_size=1, bias=False)
        self.conv2 = layer(first + widths[0], widths[1], kernel_size=1, bias=False)
        self.classifier = FCNHead(widths[1], num_classes, conv)
        if memory_efficient:
            make_memory_efficient(self)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backbone's (deepest, middle, first) features."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        deepest, middle, first = self.features(x)
        merged = self.conv1(torch.cat([middle, resize(deepest, middle.shape[2:])], 1))
        merged = self.conv2(torch.cat([first, resize(merged, first.shape[2:])], 1))
        return resize(self.classifier(merged), x.shape[2:])


class Classifier(nn.Module):
    """Classification: the mean of the backbone's deepest features over the volume, and a linear layer.

    Shape:
        input [N, C, D, H, W]; output [N, num_classes].

    Parameters, their names and outputs are those of 0.1.1's ``ClsResNet``, ``ClsVGG`` and ``ClsDenseNet``.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.feature_channels[0], num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        """[N, channels]: what the linear layer gets."""
        return self.backbone(x)[0].mean((2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pooled(x))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x`` [N, C, D, H, W] at another (D, H, W), by trilinear interpolation; itself if it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)
