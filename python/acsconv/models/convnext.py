"""ConvNeXt made of ACS layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..memory import make_memory_efficient
from ._layers import FCN, Classifier, Conv, FCNHead, chosen, convolution, is_convolution
from .pretrained import Pretrained, load_pretrained

__all__ = [
    "Block",
    "ClsConvNeXt",
    "ConvNeXt",
    "FCNConvNeXt",
    "FCNHead",
    "LayerNorm",
    "convnext_base",
    "convnext_large",
    "convnext_small",
    "convnext_tiny",
    "convnext_xlarge",
]


class LayerNorm(nn.Module):
    """Layer norm over the channels.

    Args:
        normalized_shape: the number of channels.
        data_format: ``'channels_last'`` [N, D, H, W, C] or ``'channels_first'`` [N, C, D, H, W].
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6, data_format: str = "channels_last") -> None:
        super().__init__()
        if data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                f"data_format: expected 'channels_last' or 'channels_first', got {data_format!r}"
            )
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.data_format = data_format
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        first = self.data_format == "channels_first"
        x = x.movedim(1, -1) if first else x
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1) if first else x


class _DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): leaves out the whole path of some samples in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


class Block(nn.Module):
    """A depthwise 7x7 convolution and two linear layers, with a shortcut around them.

    Args:
        dim: channels.
        drop_path: rate of the stochastic depth.
        layer_scale_init_value: initial value of the layer scale; 0 for none.
    """

    def __init__(
        self, dim: int, drop_path: float = 0.0, layer_scale_init_value: float = 1e-6, conv: Conv = "acs"
    ) -> None:
        super().__init__()
        self.dwconv = convolution(conv)(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        scale = layer_scale_init_value
        self.gamma = nn.Parameter(torch.full((dim,), scale)) if scale > 0 else None
        self.drop_path = _DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.dwconv(x).movedim(1, -1))
        out = self.pwconv2(self.act(self.pwconv1(out)))
        if self.gamma is not None:
            out = self.gamma * out
        return x + self.drop_path(out.movedim(-1, 1))


class ConvNeXt(nn.Module):
    """A ConvNeXt with its classifier.

    Args:
        in_chans: channels of the input.
        num_classes: of the output.
        depths, dims: blocks and channels of each of the four stages.
        drop_path_rate: rate of the stochastic depth in the last block; it grows from 0.
        layer_scale_init_value: see :class:`Block`.
        head_init_scale: factor on the initial classifier.
        conv, memory_efficient: as in :class:`~acsconv.models.resnet.ResNet`.

    Shape:
        input [N, in_chans, D, H, W], each size 32 or more; output [N, num_classes].

    Parameters, their names and outputs are those of acsconv 0.1.1's ``models/convnext.py``, which are the original's.
    Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        head_init_scale: float = 1.0,
        conv: Conv = "acs",
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        layer = convolution(conv)
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(
                    layer(in_chans, dims[0], kernel_size=4, stride=4),
                    LayerNorm(dims[0], data_format="channels_first"),
                )
            ]
        )
        for inputs, outputs in pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(
                    LayerNorm(inputs, data_format="channels_first"),
                    layer(inputs, outputs, kernel_size=2, stride=2),
                )
            )
        rates = iter(drop_path_rate * index / max(1, sum(depths) - 1) for index in range(sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(*[Block(dim, next(rates), layer_scale_init_value, conv) for _ in range(depth)])
            for depth, dim in zip(depths, dims)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes)
        self.feature_channels = (dims[3], dims[1], dims[0])
        for module in self.modules():
            if is_convolution(module) or isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)
        if memory_efficient:
            make_memory_efficient(self)

    def stage_features(self, x: Tensor) -> list[Tensor]:
        """The features behind each stage, at a quarter, an 8th, a 16th and a 32nd of the input's resolution."""
        features = []
        for downsample, stage in zip(self.downsample_layers, self.stages):
            x = stage(downsample(x))
            features.append(x)
        return features

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, dims[3]]: the mean of the deepest features over the volume, normalised."""
        return self.norm(self.stage_features(x)[-1].mean((2, 3, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


_SIZES = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}

_BLOCK = {
    "block.0": "dwconv",
    "block.2": "norm",
    "block.3": "pwconv1",
    "block.5": "pwconv2",
    "layer_scale": "gamma",
}
_BLOCK |= {"conv_dw": "dwconv", "norm": "norm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2", "gamma": "gamma"}


def _rename(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the names of torchvision (``features.``) and timm (``stem.``, ``.blocks.``)."""

    def renamed(key: str) -> str:
        if match := re.match(r"features\.(\d)\.(\d+)\.(?:(block\.\d|layer_scale)(.*)|(\w+))$", key):
            index, position, part, end, parameter = match.groups()
            if part is None:
                return f"downsample_layers.{int(index) // 2}.{position}.{parameter}"
            return f"stages.{int(index) // 2}.{position}.{_BLOCK[part]}{end}"
        if match := re.match(r"stages\.(\d)\.blocks\.(\d+)\.(conv_dw|norm|mlp\.fc\d|gamma)(.*)$", key):
            index, position, part, end = match.groups()
            return f"stages.{index}.{position}.{_BLOCK[part]}{end}"
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = re.sub(r"^(classifier\.0|head\.norm)\.", "norm.", key)
        return re.sub(r"^(classifier\.2|head\.fc)\.", "head.", key)

    return {renamed(key): value for key, value in found.items()}


def _named(name: str) -> Callable[..., ConvNeXt]:
    def build(
        pretrained: Pretrained = False, in_22k: bool = False, *, input_weights: str = "sum", **options
    ) -> ConvNeXt:
        if "in_channels" in options:
            options["in_chans"] = options.pop("in_channels")
        depths, dims = _SIZES[name]
        model = ConvNeXt(**{"depths": depths, "dims": dims, **options})
        if pretrained is True and in_22k:
            pretrained = f"timm:{name}.fb_in22k"
        load_pretrained(
            model, pretrained, name, heads=("head.",), rename=_rename, input_weights=input_weights
        )
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""ConvNeXt-{name.removeprefix("convnext_").capitalize()} with its classifier.

    ``pretrained`` and ``input_weights``: see :func:`~acsconv.models.pretrained.load_pretrained`; with ``in_22k``,
    ``pretrained=True`` means the weights of ImageNet-22k, from timm. The other options are those of :class:`ConvNeXt`;
    ``in_channels`` is another name of ``in_chans``.
    """
    return build


BACKBONES = {name: _named(name) for name in _SIZES}
convnext_tiny, convnext_small, convnext_base, convnext_large, convnext_xlarge = BACKBONES.values()


class FCNConvNeXt(FCN):
    """Segmentation with a ConvNeXt: see :class:`~acsconv.models._layers.FCN`.

    Args:
        pretrained, options: as for :func:`convnext_tiny`.
        num_classes: channels of the output.
        backbone: ``'convnext_tiny'`` to ``'convnext_xlarge'``.
    """

    def __init__(
        self, pretrained: Pretrained, num_classes: int, backbone: str = "convnext_tiny", **options
    ) -> None:
        network = chosen(BACKBONES, backbone)(pretrained, **options)
        network.norm, network.head = nn.Identity(), nn.Identity()
        super().__init__(
            network,
            num_classes,
            (256, 64),
            options.get("conv", "acs"),
            options.get("memory_efficient", False),
        )

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, middle, _, deepest = self.backbone.stage_features(x)
        return deepest, middle, first


class ClsConvNeXt(Classifier):
    """Classification with a ConvNeXt under the names of the other families; arguments as :class:`FCNConvNeXt`."""

    def __init__(
        self, pretrained: Pretrained, num_classes: int, backbone: str = "convnext_tiny", **options
    ) -> None:
        network = chosen(BACKBONES, backbone)(pretrained, **options)
        network.head = nn.Identity()
        super().__init__(network, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        return self.backbone(x)
