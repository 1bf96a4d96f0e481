"""DenseNet made of ACS layers, with the heads of acsconv 0.1.1."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..memory import make_memory_efficient
from ._layers import FCN, Classifier, Conv, FCNHead, chosen, convolution, is_convolution
from .pretrained import Pretrained, load_pretrained

__all__ = [
    "ClsDenseNet",
    "DenseNet",
    "FCNDenseNet",
    "FCNHead",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
]


class _DenseLayer(nn.Sequential):
    """[N, inputs, D, H, W] -> [N, inputs + growth_rate, D, H, W]: the input, and new features of it."""

    def __init__(self, inputs: int, growth_rate: int, bn_size: int, drop_rate: float, conv: Conv) -> None:
        super().__init__()
        layer, middle = convolution(conv), bn_size * growth_rate
        self.norm1 = nn.BatchNorm3d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = layer(inputs, middle, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm3d(middle)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = layer(middle, growth_rate, kernel_size=3, padding=1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.dropout(super().forward(x), self.drop_rate, self.training)], 1)


class _Transition(nn.Sequential):
    """Halves the channels and the resolution."""

    def __init__(self, inputs: int, conv: Conv) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv = convolution(conv)(inputs, inputs // 2, kernel_size=1, bias=False)
        self.pool = nn.AvgPool3d(kernel_size=2, stride=2)


class DenseNet(nn.Module):
    """A DenseNet-BC without its classifier.

    Args:
        growth_rate: channels that each layer adds.
        block_config: the number of layers in each of the four blocks.
        num_init_features: channels of the stem.
        bn_size: channels between the two convolutions of a layer, in growth rates.
        drop_rate: of the dropout behind each layer.
        num_classes: there for the callers of acsconv 0.1.1, and as unused as there.
        in_channels, conv, memory_efficient: as in :class:`~acsconv.models.resnet.ResNet`.
        high_resolution: as acsconv 0.1.1: neither a stride in the stem nor a pooling behind it. False: torchvision's.

    Shape:
        input [N, in_channels, D, H, W]; output (features of block 4, of block 2, of the stem).

    Parameters, their names and outputs are those of acsconv 0.1.1's ``models/densenet.py``.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        drop_rate: float = 0,
        num_classes: int = 1000,
        in_channels: int = 3,
        conv: Conv = "acs",
        high_resolution: bool = True,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        stride = 1 if high_resolution else 2
        self.features = nn.Sequential()
        stem = convolution(conv)(
            in_channels, num_init_features, kernel_size=7, stride=stride, padding=3, bias=False
        )
        self.features.add_module("conv0", stem)
        self.features.add_module("norm0", nn.BatchNorm3d(num_init_features))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.pool0 = nn.Identity() if high_resolution else nn.MaxPool3d(3, stride=2, padding=1)
        channels, ends = num_init_features, []
        for index, count in enumerate(block_config, 1):
            block = nn.Sequential()
            for position in range(count):
                block.add_module(
                    f"denselayer{position + 1}", _DenseLayer(channels, growth_rate, bn_size, drop_rate, conv)
                )
                channels += growth_rate
            stage = nn.Sequential()
            stage.add_module(f"denseblock{index}", block)
            if index < len(block_config):
                stage.add_module(f"transition{index}", _Transition(channels, conv))
                channels //= 2
            self.add_module(f"layer{index}", stage)
            ends.append(channels)
        self.feature_channels = (ends[3], ends[1], num_init_features)
        for module in self.modules():
            if is_convolution(module):
                nn.init.kaiming_normal_(module.weight)
        if memory_efficient:
            make_memory_efficient(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.features(x)
        middle = self.layer2(self.layer1(self.pool0(first)))
        return self.layer4(self.layer3(middle)), middle, first


_DEPTHS = {
    "densenet121": {"growth_rate": 32, "block_config": (6, 12, 24, 16), "num_init_features": 64},
    "densenet161": {"growth_rate": 48, "block_config": (6, 12, 36, 24), "num_init_features": 96},
    "densenet169": {"growth_rate": 32, "block_config": (6, 12, 32, 32), "num_init_features": 64},
    "densenet201": {"growth_rate": 32, "block_config": (6, 12, 48, 32), "num_init_features": 64},
}


def _rename(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names; those of its files as well, which have a dot more (``norm.1`` for ``norm1``)."""

    def renamed(key: str) -> str:
        key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
        return re.sub(r"^features\.(denseblock|transition)(\d)", r"layer\2.\1\2", key)

    return {renamed(key): value for key, value in found.items()}


def _named(name: str) -> Callable[..., DenseNet]:
    def build(pretrained: Pretrained = False, *, input_weights: str = "sum", **options) -> DenseNet:
        model = DenseNet(**{**_DEPTHS[name], **options})
        # The last norm of torchvision's network belongs to its classifier: 0.1.1 has neither.
        load_pretrained(
            model,
            pretrained,
            name,
            heads=("classifier.", "features.norm5."),
            rename=_rename,
            input_weights=input_weights,
        )
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""DenseNet-{name.removeprefix("densenet")} without its classifier.

    ``pretrained`` and ``input_weights``: see :func:`~acsconv.models.pretrained.load_pretrained`; the other options are
    those of :class:`DenseNet`.
    """
    return build


BACKBONES = {name: _named(name) for name in _DEPTHS}
densenet121, densenet161, densenet169, densenet201 = BACKBONES.values()


class FCNDenseNet(FCN):
    """Segmentation with a DenseNet: see :class:`~acsconv.models._layers.FCN`.

    Args:
        pretrained, options: as for :func:`densenet121`.
        num_classes: channels of the output.
        backbone: ``'densenet121'``, ``'densenet161'``, ``'densenet169'`` or ``'densenet201'``.
    """

    def __init__(
        self, pretrained: Pretrained, num_classes: int, backbone: str = "densenet121", **options
    ) -> None:
        network = chosen(BACKBONES, backbone)(pretrained, **options)
        super().__init__(
            network,
            num_classes,
            (256, 64),
            options.get("conv", "acs"),
            options.get("memory_efficient", False),
        )


class ClsDenseNet(Classifier):
    """Classification with a DenseNet; arguments as :class:`FCNDenseNet`."""

    def __init__(
        self, pretrained: Pretrained, num_classes: int, backbone: str = "densenet121", **options
    ) -> None:
        super().__init__(chosen(BACKBONES, backbone)(pretrained, **options), num_classes)
