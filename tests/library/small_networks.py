"""Small networks of PyTorch alone, and volumes, for the tests of the converters."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Depthwise and pointwise convolution with squeeze-and-excitation, as mobile networks have it."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = nn.Conv2d(channels, 2, 1)
        self.excite = nn.Conv2d(2, channels, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.act(self.norm(self.depthwise(x)))
        scale = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return x + y * scale.sigmoid()


class Net(nn.Module):
    """An encoder with a skip connection, and a head: most of what networks do with space, in a few lines."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = Block(6)
        self.wide = nn.Conv2d(6, 6, (1, 5), padding=(0, 2))
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 4)

    def forward_features(self, x):
        x = self.stem(x)
        y = self.up(self.wide(self.block(self.pool(x))))
        y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([x, y], 1)

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(self.forward_features(x)), 1))


TARGETS = ("acs", "soft", "mean", "2.5d", "3d")


def volume_of(image, depth=16, axis=2):
    """A volume that repeats an image [N, C, H, W] along one axis."""
    return image.unsqueeze(axis).repeat_interleave(depth, axis)


class Call(nn.Module):
    """A network whose code is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 49, 6))
