"""VGG with batch normalisation made of ACS layers, with the heads of acsconv 0.1.1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..memory import make_memory_efficient
from ._layers import FCN, Classifier, Conv, FCNHead, chosen, convolution, is_convolution
from .pretrained import Pretrained, load_pretrained

__all__ = ["FCNVGG", "VGG", "ClsVGG", "FCNHead", "VGG16_bn", "vgg11", "vgg13", "vgg16", "vgg19"]

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """A VGG with batch normalisation, without its classifier.

    Args:
        layers: the number of convolutions in each of the five stages.
        in_channels, conv, memory_efficient: as in :class:`~acsconv.models.resnet.ResNet`.
        high_resolution: as acsconv 0.1.1: poolings before the third and the fifth stage only. False: before each but
            the first, as torchvision's.

    Shape:
        input [N, in_channels, D, H, W]; output (features of stage 5, of stage 3, of stage 1).

    Parameters, their names and outputs are those of acsconv 0.1.1's ``models/vgg.py``.
    """

    feature_channels = (_WIDTHS[4], _WIDTHS[2], _WIDTHS[0])

    def __init__(
        self,
        layers: Sequence[int],
        in_channels: int = 3,
        conv: Conv = "acs",
        high_resolution: bool = True,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        layer = convolution(conv)
        inputs = in_channels
        for index, (width, count) in enumerate(zip(_WIDTHS, layers)):
            stage = nn.Sequential()
            if index in ((2, 4) if high_resolution else (1, 2, 3, 4)):
                stage.add_module("maxpool0", nn.MaxPool3d(kernel_size=2, stride=2))
            for position in range(count):
                stage.add_module(f"conv{position}", layer(inputs, width, kernel_size=3, padding=1))
                stage.add_module(f"bn{position}", nn.BatchNorm3d(width))
                stage.add_module(f"relu{position}", nn.ReLU(inplace=True))
                inputs = width
            self.add_module(f"layer{index}", stage)
        for module in self.modules():
            if is_convolution(module):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        if memory_efficient:
            make_memory_efficient(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.layer0(x)
        middle = self.layer2(self.layer1(first))
        return self.layer4(self.layer3(middle)), middle, first


_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def _load(model: VGG, name: str, pretrained: Pretrained, input_weights: str) -> None:
    def rename(found: dict[str, Tensor]) -> dict[str, Tensor]:
        # torchvision numbers all layers of one Sequential, activations and poolings included.
        numbers = sorted({int(key.split(".")[1]) for key in found if key.startswith("features.")})
        layers = dict.fromkeys(key.rpartition(".")[0] for key in model.state_dict())
        if len(numbers) != len(layers):
            return found
        names = dict(zip(numbers, layers))
        return {
            f"{names[int(key.split('.')[1])]}.{key.split('.')[2]}"
            if key.startswith("features.")
            else key: value
            for key, value in found.items()
        }

    load_pretrained(
        model,
        pretrained,
        f"{name}_bn",
        heads=("classifier.", "pre_logits.", "head."),
        rename=rename,
        input_weights=input_weights,
    )


def _named(name: str) -> Callable[..., VGG]:
    def build(
        pretrained: Pretrained = False, num_classes: int = 1000, *, input_weights: str = "sum", **options
    ) -> VGG:
        model = VGG(_DEPTHS[name], **options)
        _load(model, name, pretrained, input_weights)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""VGG-{name.removeprefix("vgg")} with batch normalisation, without its classifier.

    ``pretrained`` and ``input_weights``: see :func:`~acsconv.models.pretrained.load_pretrained`; the other options are
    those of :class:`VGG`. ``num_classes`` is there for the callers of acsconv 0.1.1, and as unused as there.
    """
    return build


class VGG16_bn(VGG):
    """VGG-16 under the name of acsconv 0.1.1; arguments as :func:`vgg16`."""

    def __init__(
        self,
        pretrained: Pretrained = False,
        num_classes: int = 1000,
        init_weights: bool = True,
        *,
        input_weights: str = "sum",
        **options,
    ) -> None:
        super().__init__(_DEPTHS["vgg16"], **options)
        _load(self, "vgg16", pretrained, input_weights)


vgg11, vgg13, vgg19 = (_named(name) for name in ("vgg11", "vgg13", "vgg19"))
vgg16 = VGG16_bn
BACKBONES = {"vgg11": vgg11, "vgg13": vgg13, "vgg16": vgg16, "vgg19": vgg19, "VGG16_bn": VGG16_bn}


class FCNVGG(FCN):
    """Segmentation with a VGG: see :class:`~acsconv.models._layers.FCN`.

    Args:
        pretrained, options: as for :func:`vgg16`.
        num_classes: channels of the output.
        backbone: ``'vgg11'``, ``'vgg13'``, ``'vgg16'`` or ``'vgg19'``.
    """

    def __init__(
        self, pretrained: Pretrained, num_classes: int, backbone: str = "VGG16_bn", **options
    ) -> None:
        network = chosen(BACKBONES, backbone)(pretrained, **options)
        super().__init__(
            network,
            num_classes,
            (256, 64),
            options.get("conv", "acs"),
            options.get("memory_efficient", False),
        )


class ClsVGG(Classifier):
    """Classification with a VGG; arguments as :class:`FCNVGG`."""

    def __init__(self, pretrained: Pretrained, num_classes: int, backbone: str = "vgg16", **options) -> None:
        super().__init__(chosen(BACKBONES, backbone)(pretrained, **options), num_classes)
