"""Layers for the kernel tests, their arrays, and the oracle: ACS convolution's definition in plain numpy.

The oracle evaluates ``read position = o * stride + origin + tap * dilation`` literally, in float64, tap by
tap; it shares no code with the kernels or with the package's reference (test_oracle.py compares the two).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np

from acsconv_cuda.geometry import VIEWS, Geometry, default_split, resolve

DTYPES = ("float64", "float32", "float16", "bfloat16")
LAYOUTS = ("contiguous", "channels_last")
STORAGE = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
#: Distance from 1 to the next number.
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One ACS convolution with the size of its input; ``split`` None is the default one."""

    in_channels: int
    out_channels: int
    size: Triple
    kernel: tuple[int, int] = (3, 3)
    stride: Triple = (1, 1, 1)
    padding: Triple | tuple[int, int] = (1, 1, 1)
    dilation: Triple | tuple[int, int] = (1, 1, 1)
    groups: int = 1
    split: Triple | None = None
    batch: int = 1
    bias: bool = True
    dtype: str = "float32"
    layout: str = "contiguous"
    geometry: Geometry = field(init=False, compare=False, repr=False)
    out_size: Triple = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "geometry", resolve(self.kernel, self.stride, self.padding, self.dilation))
        object.__setattr__(self, "out_size", self.geometry.output_size(self.size))
        if self.split is None:
            object.__setattr__(self, "split", default_split(self.out_channels))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.out_size)

    def __str__(self) -> str:
        def short(values):
            return "x".join(map(str, dict.fromkeys(values) if len(set(values)) == 1 else values))

        parts = [f"{self.in_channels}to{self.out_channels}", "x".join(map(str, self.size))]
        parts += [f"k{short(self.kernel)}", f"s{short(self.stride)}", f"p{short(self.padding)}"]
        parts += [f"d{short(self.dilation)}", f"g{self.groups}", "split" + ".".join(map(str, self.split))]
        parts += [f"n{self.batch}", "bias" if self.bias else "nobias", self.dtype, self.layout]
        return "-".join(parts)


def generated_layers(count: int, seed: int, **fixed: object) -> list[Layer]:
    """``count`` different small layers, drawn at random; ``fixed`` fields are the same in all."""
    draw = random.Random(seed)
    layers: dict[str, Layer] = {}
    while len(layers) < count:
        square = draw.random() < 0.8
        kernel_h = draw.choice((1, 2, 3, 3, 3, 5))
        kernel = (kernel_h, kernel_h if square else draw.choice((1, 2, 3, 4)))
        groups = draw.choice((1, 1, 1, 2, 3))
        per_group = draw.choice((1, 2, 3, 5, 8, 9, 17))
        out_channels = groups * draw.choice((1, 2, 3, 4, 8, 11, 13, 16))
        first = draw.choice((None, 0, out_channels, draw.randint(0, out_channels)))
        split = None
        if first is not None:
            second = draw.choice((0, out_channels - first, draw.randint(0, out_channels - first)))
            split = (first, second, out_channels - first - second)
        size = tuple(draw.choice((1, 2, 3, 4, 5, 7, 10)) for _ in range(3))
        if square:
            stride = tuple(draw.choice((1, 1, 2, 3)) for _ in range(3))
            dilation = tuple(draw.choice((1, 1, 2)) for _ in range(3))
            padding = tuple(draw.choice((0, d * (kernel_h - 1) // 2, 2)) for d in dilation)
        else:
            stride, dilation, padding = (1, 1, 1), (1, 1), tuple((k - 1) // 2 for k in kernel)
        values = {
            "in_channels": groups * per_group, "out_channels": out_channels, "size": size, "kernel": kernel,
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "split": split,
            "batch": draw.choice((1, 1, 2)), "bias": draw.random() < 0.7, "dtype": draw.choice(DTYPES),
            "layout": draw.choice(LAYOUTS), **fixed,
        }  # fmt: skip
        try:
            layer = Layer(**values)
        except ValueError:  # views that would differ in size
            continue
        if min(layer.out_size) >= 1:
            layers[str(layer)] = layer
    return list(layers.values())


def to_storage(values: np.ndarray, dtype: str) -> np.ndarray:
    """``values`` rounded to nearest even in ``dtype``, as the kernels store it (bfloat16 as uint16)."""
    if dtype != "bfloat16":
        return values.astype(STORAGE[dtype])
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (words + 0x7FFF + (words >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def from_storage(array: np.ndarray, dtype: str) -> np.ndarray:
    """Inverse of :func:`to_storage`, in float64."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def round_to_tf32(values: np.ndarray) -> np.ndarray:
    """Rounded to the 10 bits of fraction of TF32, to nearest with ties away from zero."""
    words = values.astype(np.float32).view(np.uint32)
    return ((words + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def with_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """A volume [N, C, D, H, W] stored contiguous or channels-last, of the same shape and values."""
    if layout == "contiguous":
        return np.ascontiguousarray(array)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def unwritten(shape: tuple[int, ...], dtype: str, layout: str = "contiguous") -> np.ndarray:
    """An array to be written by a kernel: NaN everywhere."""
    values = (
        np.full(shape, 0xFFFF, np.uint16) if dtype == "bfloat16" else np.full(shape, np.nan, STORAGE[dtype])
    )
    return with_layout(values, layout)


def unaligned(array: np.ndarray, elements: int = 1) -> np.ndarray:
    """A copy of a volume, of the same strides, that starts ``elements`` after a multiple of 16 bytes."""
    order = np.argsort(array.strides)[::-1]
    memory = np.empty(array.nbytes + 32 + elements * array.itemsize, np.uint8)
    start = -memory.ctypes.data % 16 + elements * array.itemsize
    flat = memory[start : start + array.nbytes].view(array.dtype).reshape([array.shape[i] for i in order])
    view = flat.transpose(np.argsort(order))
    view[...] = array
    return view


def strides_in_elements(array: np.ndarray) -> list[int]:
    return [stride // array.itemsize for stride in array.strides]


def problem(layer: Layer, input: np.ndarray, output: np.ndarray) -> dict[str, object]:
    """The fields of csrc/problem.h for a layer whose input and output (or their gradients) these are."""
    return {
        "type": layer.dtype,
        "batch": layer.batch,
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "groups": layer.groups,
        "in_size": layer.size,
        "out_size": layer.out_size,
        "kernel_h": layer.kernel[0],
        "kernel_w": layer.kernel[1],
        "split": layer.split,
        "stride": layer.stride,
        "origin": layer.geometry.origin,
        "dilation": layer.geometry.dilation,
        "input_strides": strides_in_elements(input),
        "output_strides": strides_in_elements(output),
    }


def fields(layer: Layer) -> dict[str, object]:
    """The problem of a layer whose arrays take no memory, for plans."""

    def volume(shape: tuple[int, ...]) -> np.ndarray:
        order = (0, 1, 2, 3, 4) if layer.layout == "contiguous" else (0, 2, 3, 4, 1)
        steps, step = [0] * 5, np.dtype(STORAGE[layer.dtype]).itemsize
        for axis in reversed(order):
            steps[axis], step = step, step * shape[axis]
        return np.lib.stride_tricks.as_strided(
            np.zeros(1, STORAGE[layer.dtype]), shape, steps, writeable=False
        )

    return problem(layer, volume(layer.input_shape), volume(layer.output_shape))


@dataclass
class Data:
    """Values of a layer's tensors in float64, exactly representable in the layer's dtype."""

    input: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    grad_output: np.ndarray


def integer_data(layer: Layer, seed: int = 0) -> Data:
    """Small integers: every sum is exact in float32, in any order, so that results must be bit-equal.

    Weights and gradients are mostly zero, so that few results are rounded when stored in 16 bits.
    """
    draw = np.random.default_rng(seed)

    def sparse(shape: tuple[int, ...]) -> np.ndarray:
        return draw.choice([-1.0, 1.0, 2.0], shape) * (draw.random(shape) < 0.4)

    bias = draw.integers(-3, 4, layer.out_channels).astype(np.float64) if layer.bias else None
    return Data(
        draw.integers(-2, 3, layer.input_shape).astype(np.float64),
        sparse(layer.weight_shape),
        bias,
        sparse(layer.output_shape),
    )


def real_data(layer: Layer, seed: int = 0) -> Data:
    """Normally distributed values, rounded to the layer's dtype."""
    draw = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return from_storage(to_storage(draw.standard_normal(shape), layer.dtype), layer.dtype)

    bias = normal((layer.out_channels,)) if layer.bias else None
    return Data(normal(layer.input_shape), normal(layer.weight_shape), bias, normal(layer.output_shape))


def _taps(layer: Layer) -> Iterator[tuple[int, int, slice, slice, tuple[np.ndarray, ...], np.ndarray]]:
    """Per view, group and tap: (tap_h, tap_w, input channels, output channels, positions, whether inside)."""
    channels_in, channels_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    ends = np.cumsum(layer.split)
    for v, view in enumerate(VIEWS):
        begin, end = ends[v] - layer.split[v], ends[v]
        for group in range(layer.groups):
            outs = slice(max(begin, group * channels_out), min(end, (group + 1) * channels_out))
            if outs.start >= outs.stop:
                continue
            ins = slice(group * channels_in, (group + 1) * channels_in)
            for tap_h in range(layer.kernel[0]):
                for tap_w in range(layer.kernel[1]):
                    taps = {view.row: tap_h, view.column: tap_w, view.thin: 0}
                    at = [
                        np.arange(layer.out_size[axis]) * layer.stride[axis]
                        + layer.geometry.origin[v][axis]
                        + taps[axis] * layer.geometry.dilation[v][axis]
                        for axis in range(3)
                    ]
                    inside = [(a >= 0) & (a < s) for a, s in zip(at, layer.size, strict=True)]
                    mask = inside[0][:, None, None] & inside[1][:, None] & inside[2]
                    clipped = np.ix_(*(np.clip(a, 0, s - 1) for a, s in zip(at, layer.size, strict=True)))
                    yield tap_h, tap_w, ins, outs, clipped, mask


def forward(layer: Layer, data: Data) -> np.ndarray:
    out = np.zeros(layer.output_shape)
    for tap_h, tap_w, ins, outs, at, mask in _taps(layer):
        read = data.input[:, ins][:, :, at[0], at[1], at[2]] * mask
        out[:, outs] += np.einsum("oi,nidhw->nodhw", data.weight[outs, :, tap_h, tap_w], read)
    return out if data.bias is None else out + data.bias[:, None, None, None]


def backward_input(layer: Layer, data: Data) -> np.ndarray:
    grad = np.zeros(layer.input_shape)
    for tap_h, tap_w, ins, outs, at, mask in _taps(layer):
        share = (
            np.einsum("oi,nodhw->nidhw", data.weight[outs, :, tap_h, tap_w], data.grad_output[:, outs]) * mask
        )
        np.add.at(grad[:, ins], (slice(None), slice(None), *at), share)
    return grad


def backward_weight(layer: Layer, data: Data) -> np.ndarray:
    grad = np.zeros(layer.weight_shape)
    for tap_h, tap_w, ins, outs, at, mask in _taps(layer):
        read = data.input[:, ins][:, :, at[0], at[1], at[2]] * mask
        grad[outs, :, tap_h, tap_w] += np.einsum("nodhw,nidhw->oi", data.grad_output[:, outs], read)
    return grad


def backward_bias(layer: Layer, data: Data) -> np.ndarray:
    return data.grad_output.sum((0, 2, 3, 4))


def assert_equal(actual: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """Equal after rounding the exact result to ``dtype``; zeros of either sign are the same."""
    exact = from_storage(to_storage(expected, dtype), dtype)
    np.testing.assert_array_equal(from_storage(actual, dtype), exact)


def assert_close(actual: np.ndarray, expected: np.ndarray, terms: int, dtype: str) -> None:
    """Within what summing ``terms`` products in the accumulator of ``dtype`` and rounding once can lose.

    ``expected`` is the float64 result for inputs of unit scale: the sum's rounding error grows like
    sqrt(terms) times its scale sqrt(terms); 8 standard deviations of it are allowed.
    """
    accumulator = EPSILON["float64" if dtype == "float64" else "float32"]
    tolerance = 8 * accumulator * (terms + 1) + EPSILON[dtype] / 2 * np.abs(expected) * (1 + 2**-8)
    error = np.abs(from_storage(actual, dtype) - expected)
    worst = np.unravel_index(np.argmax(error - tolerance), error.shape)
    allowed = np.broadcast_to(tolerance, error.shape)[worst]
    assert np.all(error <= tolerance), f"error {error[worst]:.3g} at {worst}, allowed {allowed:.3g}"


def one_view(layer: Layer, view: int) -> Triple:
    """The split that gives all output channels to one view."""
    return tuple(layer.out_channels if v == view else 0 for v in range(3))


def soft_kernels(layer: Layer, seed: int = 1) -> np.ndarray:
    """Sparse small integers [3, C_out, C_in / groups, K_h, K_w], the views' kernels of a Soft ACS convolution."""
    draw = np.random.default_rng(seed)
    shape = (3, *layer.weight_shape)
    return draw.choice([-1.0, 1.0, 2.0], shape) * (draw.random(shape) < 0.4)


def run_forward(
    emulator: ModuleType,
    layer: Layer,
    data: Data,
    *,
    launcher: str = "simt_forward",
    input: np.ndarray | None = None,
    output: np.ndarray | None = None,
) -> np.ndarray:
    """Runs a forward launcher; ``input`` and ``output`` replace the arrays made from ``data`` and the layout."""
    if input is None:
        input = with_layout(to_storage(data.input, layer.dtype), layer.layout)
    if output is None:
        output = unwritten(layer.output_shape, layer.dtype, layer.layout)
    weight = to_storage(data.weight, layer.dtype)
    bias = None if data.bias is None else to_storage(data.bias, layer.dtype)
    emulator.run(launcher, problem(layer, input, output), [input, weight, bias, output])
    return output


def run_backward_input(
    emulator: ModuleType,
    layer: Layer,
    data: Data,
    *,
    launcher: str = "simt_backward_input",
    grad_output: np.ndarray | None = None,
) -> np.ndarray:
    """Runs a launcher of the gradient of the input."""
    if grad_output is None:
        grad_output = with_layout(to_storage(data.grad_output, layer.dtype), layer.layout)
    grad_input = unwritten(layer.input_shape, layer.dtype, layer.layout)
    weight = to_storage(data.weight, layer.dtype)
    emulator.run(launcher, problem(layer, grad_input, grad_output), [grad_output, weight, grad_input])
    return grad_input


def run_backward_weight(
    emulator: ModuleType,
    layer: Layer,
    data: Data,
    *,
    launcher: str = "simt_backward_weight",
    input: np.ndarray | None = None,
    grad_output: np.ndarray | None = None,
    weight: bool = True,
    bias: bool = True,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Runs a launcher of the gradients of weight (Soft ACS: of the views' kernels) and bias, as far as wanted.

    ``input`` and ``grad_output`` replace the arrays made from ``data`` and the layout. The gradients have the layer's
    dtype, those of launchers whose name ends so float32.
    """
    if input is None:
        input = with_layout(to_storage(data.input, layer.dtype), layer.layout)
    if grad_output is None:
        grad_output = with_layout(to_storage(data.grad_output, layer.dtype), layer.layout)
    shape = (3, *layer.weight_shape) if "soft" in launcher else layer.weight_shape
    dtype = "float32" if launcher.endswith("_float32") else layer.dtype
    grad_weight = unwritten(shape, dtype) if weight else None
    grad_bias = unwritten((layer.out_channels,), dtype) if bias else None
    emulator.run(launcher, problem(layer, input, grad_output), [grad_output, input, grad_weight, grad_bias])
    return grad_weight, grad_bias


# What small random shapes do not have: several tiles of voxels, wide views, long reductions, tails of each.
SHAPES = [
    Layer(9, 48, (7, 9, 11)),
    Layer(3, 100, (3, 5, 70), split=(70, 21, 9)),
    Layer(17, 21, (1, 1, 300), kernel=(1, 1), padding=(0, 0, 0)),
    Layer(1, 24, (9, 9, 9), kernel=(7, 7), padding=(3, 3, 3), stride=(2, 2, 2)),
    Layer(40, 34, (4, 4, 4), batch=3),
    Layer(24, 48, (6, 6, 6), groups=4, split=(17, 18, 13)),
    Layer(12, 12, (6, 7, 5), groups=12, batch=2),
    Layer(6, 12, (6, 7, 5), groups=6, split=(1, 10, 1)),
    Layer(2, 3, (12, 12, 12), dilation=(3, 2, 1), padding=(3, 2, 1)),
    Layer(5, 9, (8, 8, 8), kernel=(1, 7), padding=(0, 3)),
    Layer(4, 6, (5, 9, 14), stride=(2, 3, 4), dilation=(2, 2, 3), padding=(2, 2, 3)),
    Layer(1, 70, (5, 6, 7), split=(40, 20, 10)),  # few input channels: narrow tiles of every width
    Layer(3, 7, (6, 5, 8), kernel=(7, 7), padding=(3, 3, 3)),
]


def shapes_in_all_variants() -> list[Layer]:
    return [
        replace(layer, dtype=dtype, layout=layout)
        for layer in SHAPES
        for dtype in DTYPES
        for layout in LAYOUTS
    ]
