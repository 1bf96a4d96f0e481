"""The small U-Net of the paper's proof of concept, with ACS layers."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from .. import weights
from ..memory import make_memory_efficient
from ._layers import Conv, convolution
from .pretrained import Pretrained, load_pretrained

_HEAD = "final."


class _EncoderBlock(nn.Module):
    """Two convolutions and a pooling: [N, in_channels, D, H, W] -> [N, out_channels, D/2, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int, conv: Conv = "acs") -> None:
        super().__init__()
        self.encode = nn.Sequential(
            *_convolutions(in_channels, out_channels, out_channels, conv),
            nn.MaxPool3d(kernel_size=2, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


class _DecoderBlock(nn.Module):
    """Two convolutions: [N, in_channels, D, H, W] -> [N, out_channels, D, H, W]."""

    def __init__(self, in_channels: int, middle_channels: int, out_channels: int, conv: Conv = "acs") -> None:
        super().__init__()
        self.decode = nn.Sequential(*_convolutions(in_channels, middle_channels, out_channels, conv))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(x)


class ACSUNet(nn.Module):
    """A U-Net of two levels, for segmentation.

    Args:
        num_classes: channels of the output.
        in_channels: channels of the input.
        conv: ``'acs'``, ``'soft'``, ``'mean'``, ``'2.5d'``, ``'3d'``, or a class to build the convolutions of.
        memory_efficient: see :func:`acsconv.memory.make_memory_efficient`.
        pretrained: weights to begin with. ``'poc'``: those of a network that tells six shapes apart, for
            ``num_classes=6``. ``'poc-2d'``: those of its 2D twin, all but the last layer's, for any ``num_classes``.
            Both come with this package (``docs/pretrained.md``). Or a file or a state_dict, as in
            :func:`~acsconv.models.pretrained.load_pretrained`.

    Shape:
        input [N, in_channels, D, H, W] with D, H, W divisible by 4; output [N, num_classes, D, H, W].

    Raises:
        ValueError: an input that is not of that shape; ``pretrained`` is unknown, damaged or of other classes.

    Parameters, their names and outputs are those of acsconv 0.1.1's ``models/acsunet.py``, so its checkpoints load.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        conv: Conv = "acs",
        memory_efficient: bool = False,
        pretrained: Pretrained = None,
    ) -> None:
        super().__init__()
        self.enc1 = _EncoderBlock(in_channels, 64, conv)
        self.enc2 = _EncoderBlock(64, 128, conv)
        self.dec1 = _DecoderBlock(192, 64, 32, conv)
        self.interpolate = nn.Upsample(scale_factor=2, mode="trilinear")
        self.final = convolution(conv)(32, num_classes, kernel_size=1)
        is_path = isinstance(pretrained, (str, os.PathLike))
        if pretrained is True or (is_path and not os.path.isfile(pretrained)):
            pretrained = _published(pretrained, num_classes)
        load_pretrained(self, pretrained, "acsunet", heads=(_HEAD,))
        if memory_efficient:
            make_memory_efficient(self)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.enc1.encode[0].in_channels
        sizes_fit = x.dim() == 5 and not any(size % 4 or size == 0 for size in x.shape[2:])
        if not sizes_fit or x.shape[1] != channels:
            raise ValueError(
                f"x: expected [N, {channels}, D, H, W] with D, H, W divisible by 4, got {list(x.shape)}"
            )
        half = self.enc1(x)
        quarter = self.enc2(half)
        half = self.dec1(torch.cat([half, self.interpolate(quarter)], 1))
        return self.final(self.interpolate(half))


def _published(name: str | os.PathLike | bool, num_classes: int) -> dict[str, Tensor]:
    """The state_dict of one of our own weights; without the head if it is a 2D network's."""
    known = weights.entries()
    if name not in known:
        raise ValueError(
            f"pretrained: expected one of {', '.join(map(repr, known))}, or a file, got {name!r}"
        )
    try:
        state = weights.load(name)
    except ValueError as error:
        raise ValueError(f"pretrained: {error}") from error
    if name.endswith("-2d"):
        return {key: value for key, value in state.items() if not key.startswith(_HEAD)}
    classes = known[name]["classes"]
    if num_classes != len(classes):
        raise ValueError(
            f"pretrained: {name!r} has {len(classes)} classes ({', '.join(classes)}), num_classes is {num_classes}"
        )
    return state


def _convolutions(in_channels: int, middle_channels: int, out_channels: int, conv: Conv) -> list[nn.Module]:
    layers = []
    for inputs, outputs in ((in_channels, middle_channels), (middle_channels, out_channels)):
        layers += [
            convolution(conv)(inputs, outputs, kernel_size=3, padding=1),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        ]
    return layers
