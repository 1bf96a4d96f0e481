"""A U-Net around any network that takes volumes: converted, native or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..memory import make_memory_efficient
from ._layers import Conv, convolution, resize


class _Tap:
    """A forward hook that keeps a module's output until it is taken. A class, so that networks can be pickled."""

    def __init__(self) -> None:
        self.output: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.output = output

    def take(self) -> Tensor:
        output, self.output = self.output, None
        return output


class _Up(nn.Module):
    """Doubles the resolution: upsampled to the skip's size and joined with it, then two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int, conv: Conv) -> None:
        super().__init__()
        layers = []
        for channels in (inputs + skip, outputs):
            layers += [
                convolution(conv)(channels, outputs, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm3d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, x: Tensor, skip: Tensor | None, size: Sequence[int]) -> Tensor:
        x = resize(x, size)
        return self.convolutions(x if skip is None else torch.cat([x, skip], 1))


class EncoderDecoder(nn.Module):
    """Segmentation by a U-Net (Ronneberger et al., MICCAI 2015) whose encoder is any network that takes volumes.

    Args:
        encoder: a network [N, in_channels, D, H, W] -> anything: a classifier converted by ``ACSConverter``, one of
            this package's networks, or an encoder that returns its features as a list. What lies behind its deepest
            features (pooling, classifier) runs along and gets no gradient: replace it by ``nn.Identity()`` for DDP.
        num_classes: channels of the output.
        decoder_channels: channels of the decoder from its deepest level up; all levels beyond have the last entry's.
        taps: names of the modules in the encoder whose outputs are the features, in any order. Default: for every
            resolution the last of the outermost modules that put it out, found by one run in eval mode; a list of
            features that the encoder returns takes precedence.
        in_channels: channels of the input of that run; default: those of the encoder's first convolution.
        size: (D, H, W) of that run; at that size the deepest features must be of more than one voxel.
        conv: what the decoder is made of: ``'acs'``, ``'soft'``, ``'mean'``, ``'2.5d'``, ``'3d'`` or a class.
        memory_efficient: see :func:`acsconv.memory.make_memory_efficient`.

    Attributes:
        taps: the names of the modules, from the finest to the coarsest; empty where the encoder returns the features.
        feature_channels: channels of the features in that order.

    Shape:
        input [N, in_channels, D, H, W]; output [N, num_classes, D, H, W].

    Features wait in the network for the decoder: with taps, one thread at a time can run it (no ``nn.DataParallel``).

    Raises:
        ValueError: no features were found, or no module of a name.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        *,
        taps: Sequence[str] | None = None,
        in_channels: int | None = None,
        size: Sequence[int] = (64, 64, 64),
        conv: Conv = "acs",
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        volume = _example(encoder, in_channels, size)
        self.taps, self._returned = _probe(encoder, volume, taps)
        self._hooks = [_Tap() for _ in self.taps]
        for name, hook in zip(self.taps, self._hooks):
            encoder.get_submodule(name).register_forward_hook(hook)
        with _evaluating(encoder), torch.no_grad():
            features = self._features(volume)
        self.feature_channels = [feature.shape[1] for feature in features]
        widths = list(decoder_channels)
        widths += [widths[-1]] * (len(features) - len(widths))
        skips = self.feature_channels[-2::-1]
        if features[0].shape[2:] != volume.shape[2:]:
            skips.append(0)  # a last level for the input's own resolution
        inputs, self.decoder = self.feature_channels[-1], nn.ModuleList()
        for skip, outputs in zip(skips, widths):
            self.decoder.append(_Up(inputs, skip, outputs, conv))
            inputs = outputs
        self.head = convolution(conv)(inputs, num_classes, kernel_size=1)
        if memory_efficient:
            make_memory_efficient(self)

    def forward(self, x: Tensor) -> Tensor:
        *finer, out = self._features(x)
        for level, skip in zip(self.decoder, [*reversed(finer), None]):
            out = level(out, skip, x.shape[2:] if skip is None else skip.shape[2:])
        return self.head(out)

    def _features(self, x: Tensor) -> list[Tensor]:
        """The encoder's features, from the finest to the coarsest."""
        returned = self.encoder(x)
        if self.taps:
            return [hook.take() for hook in self._hooks]
        return [returned[index] for index in self._returned]


class _evaluating:
    """Context: the network is in eval mode; afterwards every module is as it was."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __enter__(self) -> None:
        self.training = {module: module.training for module in self.network.modules()}
        self.network.eval()

    def __exit__(self, *_) -> None:
        for module, training in self.training.items():
            module.training = training


def _example(encoder: nn.Module, in_channels: int | None, size: Sequence[int]) -> Tensor:
    weights = [parameter for parameter in encoder.parameters() if parameter.is_floating_point()]
    if in_channels is None:
        in_channels = next((m.in_channels for m in encoder.modules() if hasattr(m, "in_channels")), 3)
    options = {"device": weights[0].device, "dtype": weights[0].dtype} if weights else {}
    return torch.zeros(1, in_channels, *size, **options)


def _probe(encoder: nn.Module, volume: Tensor, names: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """What holds the features, from the finest to the coarsest: names of modules, or places in what is returned."""
    shapes: dict[str, list[tuple[int, ...]]] = {}  # of outputs, in the order of execution

    def listen(name: str):
        def note(module: nn.Module, inputs: tuple, output: object) -> None:
            shapes.setdefault(name, []).append(tuple(output.shape) if isinstance(output, Tensor) else ())

        return note

    modules = dict(encoder.named_modules())
    unknown = [name for name in names or () if name not in modules]
    if unknown:
        raise ValueError(f"taps: the encoder has no module {', '.join(unknown)}")
    handles = [module.register_forward_hook(listen(name)) for name, module in modules.items() if name]
    try:
        with _evaluating(encoder), torch.no_grad():
            returned = encoder(volume)
    finally:
        for handle in handles:
            handle.remove()
    # A module that runs more than once cannot be tapped: its last output would be taken for all.
    once = {name: found[0] for name, found in shapes.items() if len(found) == 1 and _is_map(found[0])}
    if names is not None:
        missing = [name for name in names if name not in once]
        if missing:
            raise ValueError(f"taps: {', '.join(missing)} put out no [N, C, D, H, W], or run more than once")
        return sorted(names, key=lambda name: -prod(once[name][2:])), []
    if isinstance(returned, (list, tuple)):
        # Encoders that return features may begin with the input itself, or with placeholders of no channels.
        features = {i: value for i, value in enumerate(returned) if isinstance(value, Tensor)}
        places = [i for i, value in features.items() if _is_map(value.shape) and not _is_same(value, volume)]
        if places:
            return [], sorted(places, key=lambda i: -prod(features[i].shape[2:]))
    full = tuple(volume.shape[2:])
    last, smallest = {}, full
    for name, (_, _, *size) in once.items():
        size = tuple(size)
        strides = [n / m for n, m in zip(full, size)]
        # A size that grows again belongs to a decoder; one unlike the volume's, or of a single voxel, to a pooling.
        is_level = size != full and prod(size) > 1 and max(strides) <= 2 * min(strides)
        if is_level and all(n <= most for n, most in zip(size, smallest)):
            smallest = size
            # The first layers inside the next stage may have this size too: stages come before what is in them.
            if size not in last or name.count(".") <= last[size].count("."):
                last[size] = name
    if not last:
        raise ValueError(
            "encoder: found no features [N, C, D, H, W] coarser than the input; name them by taps="
        )
    return list(last.values()), []


def _is_map(shape: Sequence[int]) -> bool:
    """Whether the shape is that of features [N, C, D, H, W]."""
    return len(shape) == 5 and shape[1] > 0


def _is_same(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and value.data_ptr() == other.data_ptr()
