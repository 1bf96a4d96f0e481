"""THE table of named layers, shared by tests and benchmarks.

A ``Case`` is one convolution layer with its input size: plain numbers that pytest can parametrise over
(``ids=lambda case: case.name``) and that the benchmark times. Sizes are (D, H, W) in voxels, kernels are
square. Nothing here imports torch or the packages under test.

Suites: ``smoke`` (a few small layers, one of each kind), ``layers`` (everything). ``select`` picks from the
table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import prod

KINDS = ("acs", "soft", "mean")
FIRST_LAYER_CHANNELS = 4  # at most so many input channels: image or volume channels, not features
WIDE_CHANNELS = 128

Triple = tuple[int, int, int]


def _triple(value: int | Triple) -> Triple:
    return (value, value, value) if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class Case:
    """One layer: its hyper-parameters, as those of ``nn.Conv3d``, and the input that it is given.

    ``kind`` is ``acs`` (each output channel in one view), ``soft`` (weighted sum of three views) or ``mean``.
    ``split`` is the number of output channels per view, ``None`` for the default. ``stride``, ``padding`` and
    ``dilation`` are one number or a triple for (D, H, W).
    """

    name: str
    in_channels: int
    out_channels: int
    size: Triple
    kernel_size: int = 3
    stride: int | Triple = 1
    padding: int | Triple | None = None  # None: the padding that keeps the size at stride 1 (odd kernels)
    dilation: int | Triple = 1
    groups: int = 1
    split: Triple | None = None
    bias: bool = True
    batch: int = 1
    kind: str = "acs"
    suites: tuple[str, ...] = ("layers",)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind must be one of {KINDS}, got {self.kind!r}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self.name}: groups={self.groups} must divide both channel counts")
        if self.split is not None and (self.kind != "acs" or sum(self.split) != self.out_channels):
            raise ValueError(
                f"{self.name}: split={self.split} must add up to out_channels, and only for kind='acs'"
            )
        size, stride, dilation = _triple(self.size), _triple(self.stride), _triple(self.dilation)
        padding = self.padding
        if padding is None:
            padding = tuple(d * (self.kernel_size // 2) for d in dilation)
        # The dataclass is frozen; scalars are written out once here so that users see triples only.
        for field, value in (
            ("size", size),
            ("stride", stride),
            ("padding", _triple(padding)),
            ("dilation", dilation),
        ):
            object.__setattr__(self, field, value)
        if min(self.output_size) < 1:
            raise ValueError(f"{self.name}: output size {self.output_size} is smaller than one voxel")

    # -- shapes -------------------------------------------------------------------------------------

    @property
    def output_size(self) -> Triple:
        """(D', H', W') of the output."""
        return tuple(
            (s + 2 * p - d * (self.kernel_size - 1) - 1) // t + 1
            for s, p, d, t in zip(self.size, self.padding, self.dilation, self.stride, strict=True)
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[N, C_in, D, H, W]"""
        return (self.batch, self.in_channels, *self.size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, C_out, D', H', W']"""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[C_out, C_in / groups, K, K]"""
        return (self.out_channels, self.in_channels // self.groups, self.kernel_size, self.kernel_size)

    @property
    def is_first_layer(self) -> bool:
        """The input is an image, so that no gradient of it is asked for in training."""
        return self.in_channels <= FIRST_LAYER_CHANNELS and self.groups == 1

    @property
    def family(self) -> str:
        """The class of layer that results are averaged over."""
        if self.kind != "acs":
            return "soft"
        if self.groups > 1:
            return "depthwise" if self.groups == self.in_channels else "grouped"
        if self.is_first_layer:
            return "first layer"
        if self.kernel_size == 1:
            return "pointwise"
        if max(self.stride) > 1:
            return "strided"
        if max(self.dilation) > 1:
            return "dilated"
        return "wide" if self.out_channels >= WIDE_CHANNELS else "narrow"

    # -- arithmetic ---------------------------------------------------------------------------------

    @property
    def taps(self) -> int:
        """Input voxels that one output channel reads per input channel.

        K*K in one plane; the union of three orthogonal planes for soft ACS, which is one sum (19 taps for
        K=3)."""
        k = self.kernel_size
        return k * k if self.kind == "acs" else 3 * k * k - 3 * k + 1

    def flops(self, training: bool = False, taps: int | None = None) -> int:
        """Floating-point operations (a multiply-add is two): forward, or forward and both gradients.

        Taps that fall on the padding count, as is usual. ``taps`` replaces the number of taps per input
        channel, K**3 for the dense convolution.
        """
        taps = self.taps if taps is None else taps
        forward = 2 * prod(self.output_shape) * (self.in_channels // self.groups) * taps
        if not training:
            return forward
        return forward * (2 if self.is_first_layer else 3)

    def conv3d_flops(self, training: bool = False) -> int:
        """The same for ``nn.Conv3d`` with the cubic kernel."""
        return self.flops(training, taps=self.kernel_size**3)

    def traffic(self, element_size: int, training: bool = False) -> int:
        """Least bytes moved to and from memory: every tensor that a pass needs is read or written once.

        Forward: input, weight, bias read, output written. The backward pass reads the gradient of the output,
        the input and the weight, and writes the gradients of the weight, the bias and (except for a first
        layer) the input."""
        voxels_read = min(prod(self.size), prod(self.output_size) * self.taps)  # 1x1 with a stride skips most
        input_elements = self.batch * self.in_channels * voxels_read
        parameters = prod(self.weight_shape) + (self.out_channels if self.bias else 0)
        elements = input_elements + parameters + prod(self.output_shape)
        if training:
            elements += prod(self.output_shape) + input_elements + prod(self.weight_shape) + parameters
            elements += 0 if self.is_first_layer else prod(self.input_shape)
        return elements * element_size

    # -- variants -----------------------------------------------------------------------------------

    def describe(self) -> str:
        """One readable phrase: ``64→128 k3 s2, 24³``."""
        parts = [f"{self.in_channels}→{self.out_channels} k{self.kernel_size}"]
        for letter, values in (("s", self.stride), ("d", self.dilation)):
            if values != (1, 1, 1):
                parts.append(
                    letter + (str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values)))
                )
        if self.groups > 1:
            parts.append("depthwise" if self.groups == self.in_channels else f"groups {self.groups}")
        if self.kind != "acs":
            parts.append(self.kind)
        cube = len(set(self.size)) == 1
        volume = f"{self.size[0]}³" if cube else "x".join(map(str, self.size))
        return " ".join(parts) + f", {volume}" + (f" x{self.batch}" if self.batch > 1 else "")

    def resized(self, batch: int | None = None, scale: int = 1) -> Case:
        """The same layer on a larger input: another batch size, every edge ``scale`` times as long."""
        return replace(self, batch=batch or self.batch, size=tuple(s * scale for s in self.size))

    def small(self) -> Case:
        """The same geometry at toy size, with three different edges: for gradient checks and exhaustive
        loops.

        Channels shrink to a few per group, a split to what is left of it; kernel, stride, dilation, padding,
        bias and kind stay. Edges stay above 7 for K=7, where float32 weight gradients of torch 2.13 on CPU
        are faulty."""
        depthwise = self.groups == self.in_channels and self.groups > 1
        groups = 5 if depthwise else min(self.groups, 2)
        in_channels = groups * (1 if depthwise else min(self.in_channels // self.groups, 3))
        out_channels = groups * max(1, min(self.out_channels // self.groups, 5 // groups))
        split = None
        if self.split is not None:
            nonzero = [view for view in range(3) if self.split[view]]
            counts = [1 if view in nonzero else 0 for view in range(3)]
            out_channels = max(out_channels, groups * len(nonzero))
            counts[nonzero[0]] += out_channels - sum(counts)
            split = tuple(counts)
        reach = max(self.dilation) * (self.kernel_size - 1) + 1
        edge = reach + max(self.stride)
        if not any(self.padding):
            edge += 2  # an input that halves by accident (4 voxels, K=3) crashes acsconv 0.1.1
        size = (edge + 1, edge, edge + 2)
        return replace(
            self,
            size=size,
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
            split=split,
            batch=2,
        )


def _acsunet(edge: int) -> list[Case]:
    """ACSUNet of acsconv 0.1.1 on one-channel volumes of edge**3: two encoder blocks, one decoder block, a
    1x1 head.
    """
    half = edge // 2
    layers = (
        ("enc1a", 1, 64, edge),
        ("enc1b", 64, 64, edge),
        ("enc2a", 64, 128, half),
        ("enc2b", 128, 128, half),
        ("dec1a", 192, 64, half),
        ("dec1b", 64, 32, half),
    )
    cases = [Case(f"acsunet-{name}", i, o, _triple(size)) for name, i, o, size in layers]
    return [*cases, Case("acsunet-final", 32, 4, _triple(edge), kernel_size=1)]


def _resnet18(edge: int) -> list[Case]:
    """ResNet-18 of acsconv 0.1.1, which keeps the full resolution up to layer 2 and strides in layers 2 and
    4.
    """
    half, quarter = edge // 2, edge // 4
    layers = (
        ("conv1", 3, 64, edge, 7, 1),
        ("layer1", 64, 64, edge, 3, 1),
        ("layer2-first", 64, 128, edge, 3, 2),
        ("layer2-skip", 64, 128, edge, 1, 2),
        ("layer2", 128, 128, half, 3, 1),
        ("layer3-first", 128, 256, half, 3, 1),
        ("layer3-skip", 128, 256, half, 1, 1),
        ("layer3", 256, 256, half, 3, 1),
        ("layer4-first", 256, 512, half, 3, 2),
        ("layer4-skip", 256, 512, half, 1, 2),
        ("layer4", 512, 512, quarter, 3, 1),
    )
    return [
        Case(f"resnet18-{name}", i, o, _triple(size), kernel_size=k, stride=s, bias=False)
        for name, i, o, size, k, s in layers
    ]


def _nnunet(edge: int) -> list[Case]:
    """A ladder like that of nnU-Net: 32 to 320 channels, each stage a strided and a plain layer, and two
    decoder layers.
    """
    channels = (32, 64, 128, 256, 320)
    cases = [Case("nnunet-stage0-first", 1, 32, _triple(edge)), Case("nnunet-stage0", 32, 32, _triple(edge))]
    for stage in range(1, len(channels)):
        before, width, size = channels[stage - 1], channels[stage], edge >> stage
        cases.append(Case(f"nnunet-stage{stage}-down", before, width, _triple(2 * size), stride=2))
        cases.append(Case(f"nnunet-stage{stage}", width, width, _triple(size)))
    cases.append(Case("nnunet-decoder0", 64, 32, _triple(edge)))
    cases.append(Case("nnunet-decoder2", 256, 128, _triple(edge // 4)))
    return cases


_SINGLE = [
    Case("first-rgb-k3", 3, 64, (48, 48, 48)),
    Case("first-rgb-k7-s2", 3, 64, (64, 64, 64), kernel_size=7, stride=2, bias=False),
    Case("strided-96", 96, 96, (32, 32, 32), stride=2),
    Case("strided-anisotropic", 32, 64, (24, 48, 48), stride=(1, 2, 2)),
    Case("dilated-64-d2", 64, 64, (32, 32, 32), dilation=2),
    Case("dilated-64-d4", 64, 64, (32, 32, 32), dilation=4),
    Case("valid-32", 32, 32, (48, 48, 48), padding=0),
    Case("kernel5-48", 48, 48, (26, 26, 26), kernel_size=5),
    Case("axial-only-64", 64, 64, (32, 32, 32), split=(64, 0, 0)),
    Case("soft-32", 32, 32, (48, 48, 48), kind="soft"),
    Case("soft-64", 64, 64, (32, 32, 32), kind="soft"),
    Case("mean-64", 64, 64, (32, 32, 32), kind="mean"),
    Case("convnext-stem", 3, 96, (64, 64, 64), kernel_size=4, stride=4, padding=0),
    Case("convnext-depthwise-96", 96, 96, (24, 24, 24), kernel_size=7, groups=96),
    Case("convnext-depthwise-384", 384, 384, (12, 12, 12), kernel_size=7, groups=384),
    Case("resnext-grouped-128", 128, 128, (24, 24, 24), groups=32, bias=False),
    Case("resnext-grouped-512", 512, 512, (12, 12, 12), groups=32, bias=False),
]

_SMOKE = [
    Case("smoke-first-k3", 1, 32, (48, 48, 48), suites=("smoke",)),
    Case("smoke-first-k7-s2", 3, 32, (48, 48, 48), kernel_size=7, stride=2, bias=False, suites=("smoke",)),
    Case("smoke-narrow", 32, 32, (32, 32, 32), suites=("smoke",)),
    Case("smoke-wide", 128, 128, (16, 16, 16), suites=("smoke",)),
    Case("smoke-strided", 64, 128, (24, 24, 24), stride=2, suites=("smoke",)),
    Case("smoke-dilated", 64, 64, (20, 20, 20), dilation=2, suites=("smoke",)),
    Case("smoke-soft", 32, 32, (32, 32, 32), kind="soft", suites=("smoke",)),
    Case("smoke-depthwise", 96, 96, (14, 14, 14), kernel_size=7, groups=96, suites=("smoke",)),
]

CASES: list[Case] = [*_SMOKE, *_acsunet(48), *_resnet18(48), *_nnunet(64), *_SINGLE]

if len({case.name for case in CASES}) != len(CASES):
    raise ValueError("case names must be unique")


def select(suite: str | None = None, patterns: tuple[str, ...] = ()) -> list[Case]:
    """Cases of a suite (``None``: all) whose name matches any pattern; a pattern is a glob or a part of the
    name.
    """
    chosen = [case for case in CASES if suite is None or suite in case.suites]
    if patterns:
        chosen = [
            c for c in chosen if any(pattern in c.name or fnmatch(c.name, pattern) for pattern in patterns)
        ]
    return chosen
