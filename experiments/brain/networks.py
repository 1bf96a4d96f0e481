"""The 2D networks and how they become 3D: one architecture a kind of task, whatever the convolution. Called by run.py.

Both begin with the layers of torchvision's MobileNetV2, whose ImageNet weights a package ships, for one input
channel. They are written, and pretrained, for images, and converted as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from acsconv.models.pretrained import adapt_input_channels
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

from benchmarks.peers import mobilenet_weights
from experiments.mylib.networks import to_3d

STEM = "features.0.0.weight"
STAGES = (2, 4, 7, 14)  # of MobileNetV2's ``features``: where 1/2, 1/4, 1/8 and 1/16 of the resolution end


class Model(NamedTuple):
    """``conv``: one of mylib's; ``start``: where the weights are from, ``random``, ``imagenet`` or ``slices``."""

    conv: str
    start: str


MODELS = {
    "ACS, random": Model("ACSConv", "random"),
    "ACS, ImageNet": Model("ACSConv", "imagenet"),
    "ACS, slices": Model("ACSConv", "slices"),
    "Soft ACS, ImageNet": Model("SoftACSConv", "imagenet"),
    "2.5D, ImageNet": Model("Conv2_5d", "imagenet"),
    "Conv3d, random": Model("Conv3d", "random"),
    "Conv3d, ImageNet (I3D)": Model("Conv3d", "imagenet"),
}


class MobileClassifier(nn.Module):
    """MobileNetV2's layers down to 1/16 of the resolution, their mean, and a linear layer.

    Images [N, 1, H, W] of any size from 16 on -> logits [N, classes].
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = _features()
        self.head = nn.Linear(self.features[-1].out_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class MobileUNet(nn.Module):
    """A U-Net (Ronneberger et al., MICCAI 2015) around the same layers.

    Images [N, 1, H, W] of any size from 16 on -> logits [N, classes, H, W].
    """

    WIDTHS = (48, 32, 24, 16)  # of the decoder, from the deepest level up

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = _features()
        skips = [1, *(self.features[stage - 1].out_channels for stage in STAGES)]
        inputs = skips.pop()
        self.decoder = nn.ModuleList()
        for skip, outputs in zip(reversed(skips), self.WIDTHS):
            self.decoder.append(
                nn.Sequential(
                    nn.Conv2d(inputs + skip, outputs, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                )
            )
            inputs = outputs
        self.head = nn.Conv2d(inputs, classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        skips, start = [x], 0
        for stop in STAGES:
            skips.append(self.features[start:stop](skips[-1]))
            start = stop
        out = skips.pop()
        for level, skip in zip(self.decoder, reversed(skips)):
            # Twice the size, and what is beyond the skip cut off: the centres of strided convolutions begin at the
            # first voxel, so that stretching to an odd size would move what is predicted with a volume's size.
            out = F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False)
            out = out[(..., *map(slice, skip.shape[2:]))]
            out = level(torch.cat([out, skip], 1))
        return self.head(out)


def network_2d(segmentation: bool, classes: int) -> nn.Module:
    """[N, 1, H, W] -> logits [N, classes, H, W], or [N, classes], with random weights."""
    return MobileUNet(classes) if segmentation else MobileClassifier(classes)


def build(model: Model, segmentation: bool, classes: int, slices: Mapping[str, Tensor] | None) -> nn.Module:
    """The 3D network [N, 1, D, H, W] -> logits; ``slices``: the state_dict of the 2D network trained on slices.

    Raises:
        PeerMissing: the ImageNet weights are not installed.
    """
    network = network_2d(segmentation, classes)
    if model.start == "imagenet":
        load_imagenet(network)
    elif model.start == "slices":
        network.load_state_dict(slices)
    return to_3d(network, model.conv, pretrained=model.start != "random")


def load_imagenet(network: nn.Module) -> None:
    """MobileNetV2's ImageNet weights into ``network.features``; grey gets the sum of the colours' kernels."""
    weights = torch.load(mobilenet_weights(), map_location="cpu", weights_only=True)
    weights[STEM] = adapt_input_channels(weights[STEM], 1)
    wanted = [name for name in network.state_dict() if name.startswith("features.")]
    network.load_state_dict({name: weights[name] for name in wanted}, strict=False)


def _features() -> nn.Sequential:
    """The layers of MobileNetV2 with random weights, for one input channel."""
    features = mobilenet_v2().features[: STAGES[-1]]
    stem = features[0][0]
    features[0][0] = nn.Conv2d(1, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)
    nn.init.kaiming_normal_(features[0][0].weight, mode="fan_out")  # as torchvision's own
    return features
