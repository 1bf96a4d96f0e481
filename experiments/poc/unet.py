"""The proof of concept's 2D network, which the converters make 3D."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _convolutions(in_channels: int, middle_channels: int, out_channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in ((in_channels, middle_channels), (middle_channels, out_channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return layers


class _EncoderBlock(nn.Module):
    """Two convolutions and a pooling: [N, in_channels, H, W] -> [N, out_channels, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            *_convolutions(in_channels, out_channels, out_channels), nn.MaxPool2d(kernel_size=2, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


class _DecoderBlock(nn.Module):
    """Two convolutions: [N, in_channels, H, W] -> [N, out_channels, H, W]."""

    def __init__(self, in_channels: int, middle_channels: int, out_channels: int) -> None:
        super().__init__()
        self.decode = nn.Sequential(*_convolutions(in_channels, middle_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(x)


class UNet(nn.Module):
    """A U-Net of two levels, for the segmentation of images: the 2D twin of ``acsconv.models.ACSUNet``.

    Args:
        num_classes: channels of the output.

    Shape:
        input [N, 1, H, W] with H and W divisible by 4; output [N, num_classes, H, W].

    Names and shapes of the parameters are those of the original's ``unet.py`` and of ``ACSUNet``, so that checkpoints
    go from each to each.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.enc1 = _EncoderBlock(1, 64)
        self.enc2 = _EncoderBlock(64, 128)
        self.dec1 = _DecoderBlock(192, 64, 32)
        self.interpolate = nn.Upsample(scale_factor=2, mode="bilinear")
        self.final = nn.Conv2d(32, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        half = self.enc1(x)
        quarter = self.enc2(half)
        half = self.dec1(torch.cat([half, self.interpolate(quarter)], 1))
        return self.final(self.interpolate(half))
