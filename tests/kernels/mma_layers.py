"""Layers, plans, runs and an oracle for the tests of the tensor-core kernels."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
from kernels.harness import (
    Data,
    Layer,
    Triple,
    assert_equal,
    backward_bias,
    backward_input,
    backward_weight,
    fields,
    forward,
    integer_data,
    one_view,
    round_to_tf32,
    run_backward_input,
    run_backward_weight,
    run_forward,
    soft_kernels,
)

#: Channels of a view for each tile of the forward kernel (kViewPerWarpShapes), stride 1 and 2.
VIEW_TILES = ((8, 1), (16, 1), (24, 1), (32, 1), (48, 1), (16, 2), (32, 2))
#: Channels that make 1, 2, 3 and 5 steps of the reduction in 16 bits (in float32 twice as many).
STEPS = (16, 32, 48, 80)
MMA_DTYPES = ("bfloat16", "float16", "float32")
PASSES = ("forward", "backward_input", "soft_forward", "soft_backward_input")
#: Bytes of shared memory that a block has on compute capability 8.6, 8.9 and 12.0: too few for the halo of the forward
#: kernel of stride 2.
SMALL_BLOCKS = 99 << 10
#: Bytes of shared memory that a block has on compute capability 9.0, and on 8.0.
HOPPER, AMPERE = 227 << 10, 163 << 10
#: What the emulator counts the wavefronts of, in kernels whose stages threads fill by asynchronous copies.
COUNTED = ("ldmatrix", "cp.async of 16 bytes")


@dataclass(frozen=True)
class Tile:
    """A tile of a forward kernel with resident weights, and a layer and machine for which it is taken."""

    name: str
    split: tuple[int, int, int]
    block_shared_bytes: int
    steps: int  # odd, so that both stages begin a tile and end one

    def layer(self, dtype: str, layout: str, size: tuple[int, int, int]) -> Layer:
        channels = self.steps * (8 if dtype == "float32" else 16)
        return Layer(channels, sum(self.split), size, split=self.split, dtype=dtype, layout=layout)


def mma_layers(count: int, seed: int, most_products: float = 6e6, **fixed: object) -> list[Layer]:
    """``count`` different layers that the tensor cores take, drawn at random; ``fixed`` fields are the same in all.

    One view is empty in every third layer, channels are odd as often as multiples of 8, and the reduction is 1, 2, 3
    or 5 steps long about as often as anything else. ``most_products`` bounds the time of the emulator.
    """
    draw = random.Random(seed)
    layers: dict[str, Layer] = {}
    while len(layers) < count:
        in_channels = draw.choice((5, 8, 9, 15, 16, 24, 31, 32, 40, 48, 72, 80))
        out_channels = draw.choice((5, 8, 11, 16, 21, 24, 32, 43, 48, 64, 80, 97, 144, 160))
        size = tuple(draw.choice((1, 2, 3, 4, 5, 7, 8, 9, 11, 17)) for _ in range(3))
        stride = draw.choice((1, 1, 1, 2))
        drawn = tuple(draw.choice((1, 1, 1, 2, 3)) for _ in range(3))
        dilation = fixed.get("dilation", drawn)
        same = draw.random() < 0.7
        half = fixed.get("kernel", (3, 3))[0] // 2
        values = {
            "in_channels": in_channels, "out_channels": out_channels, "size": size, "stride": (stride,) * 3,
            "padding": tuple(half * d if same else draw.choice((0, 1, 2, 3)) for d in dilation),
            "dilation": dilation, "split": draw_split(draw, out_channels), "batch": draw.choice((1, 1, 2)),
            "bias": draw.random() < 0.7, "dtype": draw.choice(MMA_DTYPES),
            "layout": draw.choice(("channels_last", "channels_last", "contiguous")), **fixed,
        }  # fmt: skip
        layer = Layer(**values)
        if min(layer.out_size) < 1:
            continue
        d, h, w = layer.out_size
        tiles = layer.batch * (d // 4 + 1) * (h // 8 + 1) * (w // 8 + 1) * 256
        if tiles * layer.in_channels * layer.out_channels <= most_products:
            layers[str(layer)] = layer
    return list(layers.values())


def grouped_layers(count: int, seed: int, **fixed: object) -> list[Layer]:
    """``count`` different layers with groups that tensor cores take, drawn at random; ``fixed``: the same in all."""
    draw = random.Random(seed)
    layers: dict[str, Layer] = {}
    while len(layers) < count:
        groups = draw.choice((2, 2, 3, 5))
        in_channels, out_channels = (groups * draw.choice((8, 9, 12, 16, 16, 24, 33)) for _ in range(2))
        kernel = draw.choice((3, 3, 3, 5, 7))
        stride = draw.choice((1, 1, 2))
        values = {
            "in_channels": in_channels, "out_channels": out_channels, "groups": groups,
            "size": tuple(draw.choice((1, 2, 3, 4, 5, 9)) for _ in range(3)), "kernel": (kernel, kernel),
            "stride": (stride,) * 3, "padding": (draw.choice((kernel // 2, kernel // 2, 0, kernel - 1)),) * 3,
            "split": draw_split(draw, out_channels), "batch": draw.choice((1, 1, 2)), "bias": draw.random() < 0.7,
            "dtype": draw.choice(MMA_DTYPES), "layout": draw.choice(("channels_last", "channels_last", "contiguous")),
            **fixed,
        }  # fmt: skip
        layer = Layer(**values)
        if (
            min(layer.out_size) >= 1
            and np.prod(layer.size) * in_channels * out_channels * kernel**2 / groups < 2e6
        ):
            layers[str(layer)] = layer
    return list(layers.values())


def draw_split(draw: random.Random, channels: int) -> Triple | None:
    """The default split, one with an empty view, two empty views, or any."""
    kind = draw.choice(("default", "default", "empty", "any", "one"))
    if kind == "default":
        return None
    first = draw.randint(0, channels)
    parts = {"one": [channels, 0, 0], "empty": [first, channels - first, 0]}.get(kind)
    if parts is None:
        second = draw.randint(0, channels - first)
        parts = [first, second, channels - first - second]
    draw.shuffle(parts)
    return tuple(parts)


def of_views(oracle: Callable[[Layer, Data], np.ndarray], layer: Layer, data: Data) -> np.ndarray:
    """Soft ACS: the sum of the views, ``data.weight`` being the kernels of all three."""
    return sum(
        oracle(
            replace(layer, split=one_view(layer, view)),
            replace(data, weight=kernel, bias=data.bias if view == 0 else None),
        )
        for view, kernel in enumerate(data.weight)
    )


def plan(emulator: ModuleType, which: str, layer: Layer, **machine: object) -> str:
    """The plan on tensor cores of one of ``PASSES`` or of "backward_weight", a line for every run of groups."""
    soft = which.startswith("soft")
    name = f"mma_{which.removeprefix('soft_')}"
    return emulator.plan(name, fields(layer), soft=soft, **machine)[0]


def run_pass(
    emulator: ModuleType,
    which: str,
    layer: Layer,
    data: Data,
    *,
    launcher: str | None = None,
    **options: np.ndarray,
) -> np.ndarray:
    """Runs one of ``PASSES``, by default on tensor cores; Soft ACS takes the views' kernels as ``data.weight``."""
    launch = run_forward if which.endswith("forward") else run_backward_input
    return launch(emulator, layer, data, launcher=launcher or f"mma_{which}", **options)


def expected(which: str, layer: Layer, data: Data) -> np.ndarray:
    """What the pass computes, in float64."""
    oracle = forward if which.endswith("forward") else backward_input
    return of_views(oracle, layer, data) if which.startswith("soft") else oracle(layer, data)


def as_multiplied(layer: Layer, data: Data) -> Data:
    """``data`` as tensor cores multiply it: float32 rounded to TF32, but for the bias, which is added."""
    if layer.dtype != "float32":
        return data
    names = ("input", "weight", "grad_output")
    return replace(data, **{name: round_to_tf32(getattr(data, name)) for name in names})


def check_integers(emulator: ModuleType, which: str, layer: Layer, **options: object) -> None:
    """One of ``PASSES``, with the options of ``run_pass``, gives the oracle's result to the bit."""
    data = integer_data(layer)
    if which.startswith("soft"):
        data.weight = soft_kernels(layer)
    assert_equal(run_pass(emulator, which, layer, data, **options), expected(which, layer, data), layer.dtype)


def check_weight_integers(
    emulator: ModuleType, layer: Layer, *, launcher: str = "mma_backward_weight", **options: object
) -> None:
    """The gradients of weight and bias, with the options of ``run_backward_weight``, are the oracle's to the bit."""
    data = integer_data(layer)
    weight, bias = run_backward_weight(emulator, layer, data, launcher=launcher, **options)
    if "soft" in launcher:
        views = [replace(layer, split=one_view(layer, view)) for view in range(3)]
        exact = np.stack([backward_weight(view, data) for view in views])
    else:
        exact = backward_weight(layer, data)
    assert_equal(weight, exact, layer.dtype)
    assert_equal(bias, backward_bias(layer, data), layer.dtype)


def check_banks(emulator: ModuleType, run: Callable[[], object], *instructions: str) -> None:
    """``run()`` executes ``instructions`` and no other ones whose wavefronts are counted, without bank conflicts."""
    emulator.take_bank_report()
    run()
    report = emulator.take_bank_report()
    assert set(report) == set(instructions)
    for instruction, (executed, wavefronts, least) in report.items():
        assert executed > 0
        assert wavefronts == least, f"{instruction}: {wavefronts} wavefronts, {least} without conflicts"
