"""ResNet made of ACS layers, with the heads of acsconv 0.1.1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..memory import make_memory_efficient
from ._layers import FCN, Classifier, Conv, FCNHead, chosen, convolution, is_convolution
from .pretrained import Pretrained, load_pretrained

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ClsResNet",
    "FCNHead",
    "FCNResNet",
    "ResNet",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet200",
]

_HEADS = ("fc.", "conv_seg.")  # of torchvision, timm and Kinetics files; of MedicalNet


class _Block(nn.Module):
    """Convolutions with a shortcut around them: [N, inplanes, D, H, W] -> [N, planes * expansion, D', H', W']."""

    expansion: int
    kernel_sizes: tuple[int, ...]

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        conv: Conv = "acs",
    ) -> None:
        super().__init__()
        layer, count = convolution(conv), len(self.kernel_sizes)
        widths = [inplanes] + [planes] * (count - 1) + [planes * self.expansion]
        for index, size in enumerate(self.kernel_sizes):
            options = {"kernel_size": size, "padding": size // 2, "bias": False}
            options["stride"] = stride if index == self.kernel_sizes.index(3) else 1
            self.add_module(f"conv{index + 1}", layer(widths[index], widths[index + 1], **options))
            self.add_module(f"bn{index + 1}", nn.BatchNorm3d(widths[index + 1]))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out, count = x, len(self.kernel_sizes)
        for index in range(1, count + 1):
            out = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(out))
            if index < count:
                out = self.relu(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class BasicBlock(_Block):
    """Two 3x3 convolutions."""

    expansion = 1
    kernel_sizes = (3, 3)


class Bottleneck(_Block):
    """A 3x3 convolution between two of 1x1, the last of which widens fourfold."""

    expansion = 4
    kernel_sizes = (1, 3, 1)


class _PaddedShortcut(nn.Module):
    """Shortcut "A": every ``stride``-th voxel, and zeros for the channels that are new. Without parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        return F.pad(x, [0] * 7 + [self.new_channels])


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: the number of blocks in each of the four stages.
        in_channels: channels of the input.
        conv: ``'acs'``, ``'soft'``, ``'mean'``, ``'2.5d'``, ``'3d'``, or a class to build the convolutions of.
        high_resolution: as acsconv 0.1.1: neither a stride in the stem nor a pooling behind it, and none in the third
            stage, so that the deepest features have a quarter of the input's resolution. False: torchvision's strides,
            a thirty-second.
        shortcut: ``'B'``, a strided 1x1 convolution where the shape changes, or ``'A'``, without parameters, as in the
            published MedicalNet and Kinetics files of ResNet-18 and 34.
        memory_efficient: see :func:`acsconv.memory.make_memory_efficient`.

    Shape:
        input [N, in_channels, D, H, W]; output (features of stage 4, of stage 2, of the stem).

    Parameters, their names and outputs are those of acsconv 0.1.1's ``models/resnet.py``; names those of torchvision's.
    """

    def __init__(
        self,
        block: type[_Block],
        layers: Sequence[int],
        in_channels: int = 3,
        conv: Conv = "acs",
        high_resolution: bool = True,
        shortcut: str = "B",
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut: expected 'A' or 'B', got {shortcut!r}")
        layer = convolution(conv)
        stem_stride, strides = (1, (1, 2, 1, 2)) if high_resolution else (2, (1, 2, 2, 2))
        self.conv1 = layer(in_channels, 64, kernel_size=7, stride=stem_stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if high_resolution else nn.MaxPool3d(3, stride=2, padding=1)
        inplanes = 64
        for index, (planes, blocks, stride) in enumerate(zip((64, 128, 256, 512), layers, strides)):
            stage = []
            for position in range(blocks):
                step, outplanes = stride if position == 0 else 1, planes * block.expansion
                downsample = None
                if (step != 1 or inplanes != outplanes) and shortcut == "A":
                    downsample = _PaddedShortcut(outplanes - inplanes, step)
                elif step != 1 or inplanes != outplanes:
                    downsample = nn.Sequential(
                        layer(inplanes, outplanes, kernel_size=1, stride=step, bias=False),
                        nn.BatchNorm3d(outplanes),
                    )
                stage.append(block(inplanes, planes, step, downsample, conv))
                inplanes = outplanes
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
        self.feature_channels = (512 * block.expansion, 128 * block.expansion, 64)
        for module in self.modules():
            if is_convolution(module):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if memory_efficient:
            make_memory_efficient(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.relu(self.bn1(self.conv1(x)))
        middle = self.layer2(self.layer1(self.maxpool(first)))
        return self.layer4(self.layer3(middle)), middle, first


_DEPTHS: dict[str, tuple[type[_Block], tuple[int, ...]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnet200": (Bottleneck, (3, 24, 36, 3)),
}


def _named(name: str) -> Callable[..., ResNet]:
    def build(pretrained: Pretrained = False, *, input_weights: str = "sum", **options) -> ResNet:
        block, layers = _DEPTHS[name]
        model = ResNet(block, layers, **options)
        load_pretrained(model, pretrained, name, heads=_HEADS, input_weights=input_weights)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""ResNet-{name.removeprefix("resnet")} without its classifier.

    ``pretrained`` and ``input_weights``: see :func:`~acsconv.models.pretrained.load_pretrained`; the other options are
    those of :class:`ResNet`.
    """
    return build


BACKBONES = {name: _named(name) for name in _DEPTHS}
resnet10, resnet18, resnet34, resnet50, resnet101, resnet152, resnet200 = BACKBONES.values()


class FCNResNet(FCN):
    """Segmentation with a ResNet: see :class:`~acsconv.models._layers.FCN`.

    Args:
        pretrained, options: as for :func:`resnet18`.
        num_classes: channels of the output.
        backbone: ``'resnet10'`` to ``'resnet200'``.
    """

    def __init__(
        self, pretrained: Pretrained, num_classes: int, backbone: str = "resnet18", **options
    ) -> None:
        network = chosen(BACKBONES, backbone)(pretrained, **options)
        super().__init__(
            network,
            num_classes,
            (512, 512),
            options.get("conv", "acs"),
            options.get("memory_efficient", False),
        )


class ClsResNet(Classifier):
    """Classification with a ResNet; arguments as :class:`FCNResNet`."""

    def __init__(
        self, pretrained: Pretrained, num_classes: int, backbone: str = "resnet18", **options
    ) -> None:
        super().__init__(chosen(BACKBONES, backbone)(pretrained, **options), num_classes)
