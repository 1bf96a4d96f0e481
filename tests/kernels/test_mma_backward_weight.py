"""The gradients of weight and bias on tensor cores, in the emulator: every shape of block, layout and volume."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    LAYOUTS,
    Data,
    Layer,
    assert_close,
    assert_equal,
    backward_bias,
    backward_weight,
    fields,
    integer_data,
    real_data,
    run_backward_weight,
    to_storage,
    unaligned,
    with_layout,
)
from kernels.mma_layers import MMA_DTYPES, SMALL_BLOCKS, as_multiplied, check_weight_integers

LARGE = 10**4  # multiprocessors that make the planner cut the voxels into as many parts as it may
# Size and stride.
KERNELS = ((3, 1), (3, 1), (3, 1), (5, 1), (7, 1), (3, 2), (3, 2), (2, 2), (5, 2), (7, 2))


def run(emulator, layer: Layer, data: Data, **options) -> tuple[np.ndarray | None, np.ndarray | None]:
    return run_backward_weight(emulator, layer, data, **{"launcher": "mma_backward_weight", **options})


def generated(count: int, seed: int) -> list[Layer]:
    """``count`` different layers that the kernel takes, drawn at random."""
    draw = random.Random(seed)
    layers: dict[str, Layer] = {}
    while len(layers) < count:
        dtype = draw.choice(MMA_DTYPES)
        kernel, stride = draw.choice(KERNELS)
        out_channels = draw.choice((1, 3, 4, 8, 12, 16, 21, 24, 32, 48, 64, 70))
        first = draw.choice((None, None, 0, out_channels, draw.randint(0, out_channels)))
        split = None
        if first is not None:
            second = draw.choice((0, out_channels - first, draw.randint(0, out_channels - first)))
            split = (first, second, out_channels - first - second)
        in_channels = draw.choice((1, 3, 8, 9, 16, 20, 32, 40, 64, 72))
        if in_channels < 4 and (dtype == "float32" or (kernel > 3 and stride == 2)):
            continue
        layer = Layer(
            in_channels,
            out_channels,
            tuple(draw.choice((1, 2, 3, 4, 5, 7, 9, 12, 17)) for _ in range(3)),
            kernel=(kernel, kernel),
            stride=(stride,) * 3,
            padding=(draw.choice(((kernel - 1) // 2, (kernel - 1) // 2, 0, kernel - 1)),) * 3,
            split=split,
            batch=draw.choice((1, 1, 2)),
            dtype=dtype,
            layout=draw.choice(LAYOUTS),
        )
        if min(layer.out_size) >= 1 and np.prod(layer.size) * out_channels < 30000:
            layers[str(layer)] = layer
    return list(layers.values())


@pytest.mark.parametrize("layer", generated(120, seed=31), ids=str)
def test_bit_equal_on_integers(emulator, layer):
    emulator.configure(detect_races=False)
    check_weight_integers(emulator, layer)


# Every shape of block by both ways of copying: 32 input channels, 64 with three and four columns of tiles; of stride 2
# with two and three columns; 5 and 7 with both strides, and 2 x 2 kernels.
LARGER = [
    Layer(32, 24, (4, 4, 9), kernel=(5, 5), padding=(2, 2, 2)),
    Layer(16, 16, (4, 4, 9), kernel=(7, 7), padding=(3, 3, 3)),
    Layer(24, 64, (4, 4, 9), kernel=(2, 2), stride=(2, 2, 2), padding=(0, 0, 0)),
    Layer(32, 24, (4, 4, 9), kernel=(5, 5), stride=(2, 2, 2), padding=(2, 2, 2)),
    Layer(24, 16, (4, 4, 9), kernel=(7, 7), stride=(2, 2, 2), padding=(3, 3, 3)),
]
BLOCKS = [
    Layer(32, 32, (4, 4, 9)),
    Layer(64, 64, (4, 4, 9)),
    Layer(64, 96, (4, 4, 9)),
    Layer(32, 32, (4, 4, 9), stride=(2, 2, 2)),
    Layer(32, 64, (4, 4, 9), stride=(2, 2, 2)),
    *LARGER,
]
BLOCKS = [replace(layer, dtype=dtype) for dtype in ("bfloat16", "float16") for layer in BLOCKS]
BLOCKS += [
    Layer(32, 32, (4, 4, 9)),
    Layer(32, 64, (4, 4, 9)),
    Layer(32, 64, (4, 4, 9), stride=(2, 2, 2)),
    *LARGER,
]  # TF32
ONCE = [layer for layer in BLOCKS if layer.dtype != "float16"]  # one of the 16-bit types


@pytest.mark.parametrize("tiles", [1, 2, 3, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", BLOCKS, ids=str)
def test_tiles_of_a_part(emulator, layer, layout, tiles):
    """One part of 1, 2, 3 and 5 tiles: both stages are used again."""
    emulator.configure(detect_races=False)
    width = (8 * tiles - 3) * layer.stride[2]
    check_weight_integers(emulator, replace(layer, size=(4, 4, width), layout=layout))


RACES = [
    Layer(8, 12, (4, 5, 19)),
    Layer(32, 8, (3, 4, 25), split=(8, 0, 0), layout="channels_last"),
    Layer(32, 20, (9, 2, 17), split=(0, 4, 16), layout="channels_last", dtype="float16"),
    Layer(64, 24, (2, 9, 17), layout="channels_last"),
    Layer(9, 7, (5, 9, 10), batch=2),
    Layer(16, 8, (3, 5, 17), kernel=(5, 5), padding=(2, 2, 2), layout="channels_last"),
    Layer(8, 4, (3, 4, 17), kernel=(7, 7), padding=(3, 3, 3), split=(1, 2, 1), layout="channels_last"),
    Layer(16, 8, (9, 7, 35), stride=(2, 2, 2), layout="channels_last"),
    Layer(8, 24, (8, 9, 32), stride=(2, 2, 2), kernel=(2, 2), padding=(0, 0, 0)),
    Layer(8, 12, (5, 9, 33), stride=(2, 2, 2), kernel=(5, 5), padding=(2, 2, 2), layout="channels_last"),
]
RACES = [replace(layer, dtype="bfloat16") if layer.dtype == "float32" else layer for layer in RACES]
RACES += [
    Layer(8, 24, (4, 5, 19), layout="channels_last"),
    Layer(9, 7, (3, 5, 10), split=(4, 3, 0), batch=2),
    Layer(16, 8, (5, 7, 19), stride=(2, 2, 2), layout="channels_last"),
    Layer(8, 4, (3, 5, 17), kernel=(7, 7), padding=(3, 3, 3), split=(1, 2, 1), layout="channels_last"),
    Layer(9, 4, (5, 6, 17), kernel=(7, 7), stride=(2, 2, 2), padding=(3, 3, 3), split=(2, 0, 2)),
]
SCHEDULES = [("warp-first", "late", 1), ("random", "early", 2), ("random", "random", 3)]


@pytest.mark.parametrize("multiprocessors", [1, LARGE])
@pytest.mark.parametrize("schedule, async_copies, seed", SCHEDULES)
@pytest.mark.parametrize("layer", RACES, ids=str)
def test_no_race(emulator, layer, schedule, async_copies, seed, multiprocessors):
    emulator.configure(
        schedule=schedule, async_copies=async_copies, seed=seed, multiprocessors=multiprocessors
    )
    check_weight_integers(emulator, layer)


@pytest.mark.parametrize("layer", generated(12, seed=32), ids=str)
def test_parts(emulator, layer):
    emulator.configure(multiprocessors=LARGE, detect_races=False)
    check_weight_integers(emulator, replace(layer, size=(9, 10, 17)))


@pytest.mark.parametrize("layer", ONCE, ids=str)
def test_gpu_with_little_shared_memory(emulator, layer):
    emulator.configure(block_shared_bytes=SMALL_BLOCKS, detect_races=False)
    if layer.dtype == "float32" and layer.kernel == (3, 3) and layer.stride[0] == 2:
        with pytest.raises(RuntimeError, match="more shared memory than this GPU has"):
            check_weight_integers(emulator, layer)
    else:
        check_weight_integers(emulator, layer)


def test_deterministic(emulator):
    """The same bits whatever the order in which threads run and copies move."""
    layer = Layer(16, 20, (5, 9, 17), dtype="float16", layout="channels_last")
    data = real_data(layer)
    results = []
    for schedule, async_copies, seed in [*SCHEDULES, ("reverse", "late", 1)]:
        emulator.configure(
            schedule=schedule, async_copies=async_copies, seed=seed, multiprocessors=LARGE, detect_races=False
        )
        results.append(run(emulator, layer, data, launcher="mma_backward_weight_float32"))
    for weight, bias in results[1:]:
        np.testing.assert_array_equal(weight, results[0][0])
        np.testing.assert_array_equal(bias, results[0][1])


@pytest.mark.parametrize("launcher", ["mma_backward_weight", "mma_backward_weight_float32"])
@pytest.mark.parametrize("layer", generated(12, seed=33), ids=str)
def test_close_on_real_values(emulator, layer, launcher):
    emulator.configure(multiprocessors=4, detect_races=False)
    data, terms = real_data(layer), layer.batch * int(np.prod(layer.out_size))
    weight, bias = run(emulator, layer, data, launcher=launcher)
    dtype = "float32" if launcher.endswith("float32") else layer.dtype
    assert_close(weight, backward_weight(layer, as_multiplied(layer, data)), terms, dtype)
    assert_close(bias, backward_bias(layer, data), terms, dtype)


@pytest.mark.parametrize("wanted", ["weight", "bias"])
@pytest.mark.parametrize("layer", generated(4, seed=34), ids=str)
def test_only_what_is_wanted(emulator, layer, wanted):
    data = integer_data(layer)
    weight, bias = run(emulator, layer, data, weight=wanted == "weight", bias=wanted == "bias")
    if wanted == "weight":
        assert_equal(weight, backward_weight(layer, data), layer.dtype)
    else:
        assert_equal(bias, backward_bias(layer, data), layer.dtype)


@pytest.mark.parametrize("layer", generated(8, seed=35), ids=str)
def test_soft(emulator, layer):
    emulator.configure(detect_races=False)
    check_weight_integers(emulator, layer, launcher="mma_soft_backward_weight")


STORAGE_LAYER = Layer(16, 12, (5, 6, 9), batch=2, dtype="bfloat16", layout="channels_last")


@pytest.mark.parametrize("elements", [1, 2, 4])
@pytest.mark.parametrize("which", ["input", "grad_output"])
def test_unaligned_storage(emulator, which, elements):
    data = integer_data(STORAGE_LAYER)
    values = data.input if which == "input" else data.grad_output
    array = unaligned(with_layout(to_storage(values, "bfloat16"), "channels_last"), elements)
    check_weight_integers(emulator, STORAGE_LAYER, **{which: array})


def test_layouts_differ(emulator):
    data = integer_data(STORAGE_LAYER)
    check_weight_integers(
        emulator, STORAGE_LAYER, input=with_layout(to_storage(data.input, "bfloat16"), "contiguous")
    )  # of the output: channels-last


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_of_larger_tensors(emulator, layout):
    layer, data = STORAGE_LAYER, integer_data(STORAGE_LAYER)
    slices = (slice(None), slice(2, 18), slice(1, 6), slice(2, 8), slice(3, 12))
    whole = with_layout(np.full((2, 24, 8, 10, 16), 0x7FFF, np.uint16), layout)  # NaN around the view
    whole[slices] = to_storage(data.input, layer.dtype)
    check_weight_integers(emulator, layer, input=whole[slices])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_expanded_grad_output(emulator, layout):
    layer = replace(STORAGE_LAYER, layout=layout)
    data = integer_data(layer)
    data.grad_output = np.broadcast_to(data.grad_output[:1, :1, :1, :1, :1], layer.output_shape)
    one = np.broadcast_to(to_storage(data.grad_output[:1, :1, :1, :1, :1], layer.dtype), layer.output_shape)
    weight, bias = run(emulator, layer, data, grad_output=one)
    assert_equal(weight, backward_weight(layer, data), layer.dtype)
    assert_equal(bias, backward_bias(layer, data), layer.dtype)


def test_what_no_output_reads_does_not_matter(emulator):
    """NaN behind the last position that a view reads along its thin axis: padding 0 crops that axis."""
    layer = replace(STORAGE_LAYER, padding=(0, 0, 0), split=(12, 0, 0))
    data = integer_data(layer)
    x = to_storage(data.input, layer.dtype)
    x[:, :, [0, -1]] = 0x7FFF
    data.input[:, :, [0, -1]] = 0
    check_weight_integers(emulator, layer, input=with_layout(x, layer.layout))


@pytest.mark.parametrize("batch, size", [(0, (4, 5, 6)), (1, (2, 5, 6))], ids=["batch", "output"])
def test_no_voxels(emulator, batch, size):
    layer = Layer(8, 9, size, batch=batch, padding=(0, 0, 0), dtype="bfloat16")
    weight, bias = run(emulator, layer, integer_data(layer))
    assert not weight.any()
    assert not bias.any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", ONCE, ids=str)
def test_no_bank_conflicts(emulator, layer, layout):
    """Counted from the addresses that the lanes use: what the kernel's strides in csrc/mma_weight_plan.h are for."""
    emulator.configure(detect_races=False, count_banks=True)
    for plain in (False, True):
        emulator.take_bank_report(plain)
    check_weight_integers(emulator, replace(layer, layout=layout))
    report = emulator.take_bank_report() | emulator.take_bank_report(plain=True)
    in_float32 = layer.dtype == "float32"
    expected = {"load of 4 bytes in mma_weight_fragments.cuh" if in_float32 else "ldmatrix"}
    if layout == "contiguous":
        expected |= {"store of 16 bytes in mma_weight_tiles.cuh"}
    else:
        expected |= {"cp.async of 16 bytes"} | (set() if in_float32 else {"cp.async of 8 bytes"})
    for instruction in expected:
        executions, wavefronts, least = report[instruction]
        assert executions > 0
        # Where 8 threads meet the end of a plane they store in two wavefronts.
        unavoidable = executions // 32 if instruction.startswith("store") else 0
        assert least <= wavefronts <= least + unavoidable, instruction


LAYER = Layer(64, 64, (32, 32, 32), dtype="bfloat16", layout="channels_last")
FLOAT32 = replace(LAYER, dtype="float32")
REJECTED = [
    (replace(FLOAT32, in_channels=3), "3 input channels or fewer"),
    (
        replace(LAYER, in_channels=3, kernel=(5, 5), padding=(2, 2, 2), stride=(2, 2, 2)),
        "3 input channels or fewer",
    ),
    (replace(LAYER, dtype="float64"), "float64"),
    (replace(LAYER, kernel=(1, 1), padding=(0, 0, 0)), "no block takes kernels of 1 x 1 and stride 1"),
    (replace(LAYER, kernel=(1, 3), padding=(0, 1)), "the kernel is not square"),
    (replace(LAYER, stride=(3, 3, 3)), "no block takes kernels of 3 x 3 and stride 3"),
    (replace(LAYER, stride=(1, 2, 1)), "the strides differ"),
    (replace(LAYER, dilation=(1, 1, 2), padding=(1, 1, 2)), "dilation > 1"),
    (replace(LAYER, in_channels=2**17, size=(4, 4, 4)), "the sums of 24 output channels exceed 64 MiB"),
]


def plan_and_workspace(emulator, layer: Layer, multiprocessors: int, **options: bool) -> tuple[str, int]:
    return emulator.plan("mma_backward_weight", fields(layer), multiprocessors=multiprocessors, **options)


@pytest.mark.parametrize("layer, reason", REJECTED, ids=lambda value: value if isinstance(value, str) else "")
def test_rejections(emulator, layer, reason):
    text, workspace = plan_and_workspace(emulator, layer, 132)
    assert text.startswith(f"gradient of the weight on tensor cores: {reason}")
    assert workspace == 0


def test_float32_is_rounded_only_where_allowed(emulator):
    text, workspace = plan_and_workspace(emulator, FLOAT32, 132, allow_tf32=False)
    assert text.endswith("float32 without TF32")
    assert workspace == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("channels", [4, 16, 32, 48, 64, 96, 128, 320, 512, 1024, 2048])
@pytest.mark.parametrize("size", [4, 32, 160])
def test_workspace_is_bounded(emulator, channels, size, dtype):
    for multiprocessors in (1, 132, LARGE):
        layer = Layer(channels, channels, (size,) * 3, dtype=dtype, layout="channels_last")
        text, workspace = plan_and_workspace(emulator, layer, multiprocessors)
        assert "parts" in text
        assert 0 < workspace <= 64 << 20


def test_sums_larger_than_the_workspace(emulator):
    """Columns are computed in two launches, the second of fewer units; the bias too."""
    layer = Layer(
        576, 624, (1, 1, 1), kernel=(7, 7), stride=(2, 2, 2), padding=(3, 3, 3), dtype="bfloat16",
        layout="channels_last",
    )  # fmt: skip
    emulator.configure(detect_races=False)
    assert "39 x 18 blocks (20 at once), 1 parts" in plan_and_workspace(emulator, layer, 132)[0]
    check_weight_integers(emulator, layer)


def test_parts_fill_the_machine_once(emulator):
    """64 to 64 channels: three units of 24 columns, so 44 parts for 132 multiprocessors."""
    text, _ = plan_and_workspace(emulator, LAYER, 132)
    assert "64 x 24 channels, 384 threads, 3 x 1 blocks, 44 parts" in text
    text, _ = plan_and_workspace(emulator, FLOAT32, 132)
    assert "32 x 24 channels, 384 threads, 3 x 2 blocks, 22 parts" in text


def test_parts_are_short_enough_for_float32_sums(emulator):
    """No part has more than 64 tiles, whatever the machine."""
    text, _ = plan_and_workspace(emulator, replace(LAYER, size=(64, 128, 128)), 1)
    assert f" {64 * 128 * 128 // 256 // 64} parts" in text
