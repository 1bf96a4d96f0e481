"""The networks of the memory suite, each from our layer, from acsconv 0.1.1 and from ``nn.Conv3d``.

What is around the convolutions is the same in all of them; ours and that of acsconv 0.1.1 hold equal weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = 4


class PlainUNet(nn.Module):
    """A U-Net as nnU-Net plans them: two convolutions a level with instance norm and leaky ReLU, the first strided.

    [N, 1, D, H, W] -> [N, CLASSES, D, H, W]; sizes are multiples of 2 ** (levels - 1).

    Source: Isensee et al., nnU-Net, Nature Methods 2021 (levels and widths of its default plans, shortened).
    """

    def __init__(self, conv: Callable[..., nn.Module], widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()

        def level(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels, step in ((inputs, stride), (outputs, 1)):
                layers += [
                    conv(channels, outputs, kernel_size=3, stride=step, padding=1),
                    nn.InstanceNorm3d(outputs, affine=True),
                    nn.LeakyReLU(0.01, inplace=True),
                ]
            return nn.Sequential(*layers)

        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList([level(1, widths[0], 1), *(level(a, b, 2) for a, b in pairs)])
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.decoder = nn.ModuleList(level(2 * a, a, 1) for a, _ in reversed(pairs))
        self.head = nn.Conv3d(widths[0], CLASSES, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        for up, level, skip in zip(self.up, self.decoder, skips[-2::-1]):
            x = level(torch.cat([up(x), skip], 1))
        return self.head(x)


def _acsunet(conv: Callable[..., nn.Module]) -> nn.Module:
    from acsconv.models import ACSUNet

    return ACSUNet(CLASSES, conv=conv)


def _resnet(conv: Callable[..., nn.Module]) -> nn.Module:
    from acsconv.models.resnet import FCNResNet

    return FCNResNet(False, CLASSES, conv=conv)


@dataclass(frozen=True)
class MemoryNetwork:
    """``build(conv)`` gives a network [N, channels, D, H, W] -> [N, CLASSES, D, H, W].

    Edges of its cubes grow from ``first`` on by ``step``.
    """

    name: str
    purpose: str
    build: Callable[[Callable[..., nn.Module]], nn.Module]
    channels: int
    first: int
    step: int


NETWORKS = {
    network.name: network
    for network in (
        MemoryNetwork("PoC U-Net", "batch norm, two levels", _acsunet, 1, 48, 16),
        MemoryNetwork("FCN ResNet-18", "batch norm, shortcuts", _resnet, 3, 24, 8),
        MemoryNetwork("nnU-Net-like", "instance norm, leaky ReLU, four levels", PlainUNet, 1, 48, 16),
    )
}
