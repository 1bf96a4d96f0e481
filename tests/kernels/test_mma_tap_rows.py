"""The tensor-core kernel of one row of taps per step, in the emulator: 5x5, 7x7, and stride 2 in every pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    LAYOUTS,
    Layer,
    assert_close,
    integer_data,
    one_view,
    real_data,
    to_storage,
    unaligned,
    with_layout,
)
from kernels.mma_layers import (
    COUNTED,
    MMA_DTYPES,
    PASSES,
    SMALL_BLOCKS,
    STEPS,
    as_multiplied,
    check_banks,
    check_integers,
    expected,
    mma_layers,
    plan,
    run_pass,
)

#: Kernel, stride, channels of a block.
TILES = [(3, 2, 32), (3, 2, 64), (5, 1, 32), (7, 1, 32), (5, 2, 32), (7, 2, 32)]


def cases(count: int, seed: int, **fixed: object) -> list[tuple[str, Layer]]:
    """``count`` layers for each pass."""
    return [
        (which, layer)
        for number, which in enumerate(PASSES)
        for layer in mma_layers(count, seed=seed + number, **fixed)
    ]


#: Dilations with stride 2, two even and one odd.
MIXED = Layer(
    8, 19, (5, 8, 9), kernel=(5, 5), stride=(2, 2, 2), dilation=(2, 1, 4), padding=(5, 2, 8), dtype="bfloat16",
    layout="channels_last",
)  # fmt: skip
#: Dilations with stride 2: in the gradient of the input odd ones have classes of taps, and even ones positions that no
#: tap reaches. Odd tails of all of them.
DILATED = [
    Layer(
        20, 24, (9, 7, 19), stride=(2, 2, 2), dilation=(3, 1, 3), padding=(3, 1, 2), dtype="bfloat16",
        layout="channels_last",
    ),
    Layer(
        9, 16, (4, 8, 11), kernel=(5, 5), stride=(2, 2, 2), dilation=(1, 3, 5), padding=(2, 6, 10), split=(0, 9, 7),
    ),
    Layer(
        8, 11, (12, 5, 3), kernel=(7, 7), stride=(2, 2, 2), dilation=(3, 1, 1), padding=(9, 3, 4), dtype="float16",
        layout="channels_last",
    ),
    Layer(
        9, 21, (9, 6, 19), stride=(2, 2, 2), dilation=(2, 2, 2), padding=(2, 1, 3), dtype="bfloat16",
        layout="channels_last", batch=2,
    ),
    Layer(20, 24, (7, 9, 11), stride=(2, 2, 2), dilation=(1, 2, 3), padding=(1, 2, 4), dtype="float16"),
    Layer(
        16, 24, (5, 4, 13), stride=(2, 2, 2), dilation=(4, 1, 2), padding=(5, 1, 2), split=(11, 13, 0),
        layout="channels_last",
    ),
    MIXED,
    Layer(
        9, 11, (8, 3, 4), kernel=(7, 7), stride=(2, 2, 2), dilation=(1, 2, 1), padding=(3, 6, 4), dtype="float16",
        layout="channels_last",
    ),
]  # fmt: skip
GENERATED = [
    *cases(24, 500, stride=(2, 2, 2), dilation=(1, 1, 1), most_products=2e6),
    *(
        ("forward", layer)
        for layer in mma_layers(3, seed=505, stride=(2, 2, 2), dilation=(2, 1, 3), most_products=3e5)
    ),
    *cases(6, 510, kernel=(5, 5), stride=(1, 1, 1), dilation=(1, 1, 1), most_products=6e5),
    *cases(2, 520, kernel=(5, 5), stride=(1, 1, 1), dilation=(1, 2, 3), most_products=1e5),
    *cases(3, 530, kernel=(7, 7), stride=(1, 1, 1), dilation=(1, 1, 1), most_products=3e5),
    *cases(1, 540, kernel=(7, 7), stride=(1, 1, 1), dilation=(2, 1, 1), most_products=1e5),
    *cases(6, 550, kernel=(5, 5), stride=(2, 2, 2), dilation=(1, 1, 1), most_products=6e5),
    *cases(4, 560, kernel=(7, 7), stride=(2, 2, 2), dilation=(1, 1, 1), most_products=3e5),
    *((which, layer) for which in ("backward_input", "soft_backward_input") for layer in DILATED),
    *(
        (which, layer)
        for which in ("backward_input", "soft_backward_input")
        for number, dilation in enumerate([(2, 2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 4, 2)])
        for layer in mma_layers(3, 580 + number, 3e5, stride=(2, 2, 2), dilation=dilation)
    ),
    *(
        ("forward", layer)
        for kernel in (5, 7)
        for layer in mma_layers(1, 570, 3e5, kernel=(kernel, kernel), stride=(2, 2, 2), dilation=(2, 1, 3))
    ),
]


@pytest.mark.parametrize("which, layer", GENERATED, ids=lambda value: str(value))
def test_bit_equal_on_integers(emulator, which, layer):
    emulator.configure(block_shared_bytes=SMALL_BLOCKS)
    assert "one row of taps per step" in plan(emulator, which, layer)
    check_integers(emulator, which, layer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("kernel, stride, columns", TILES)
def test_every_tile(emulator, kernel, stride, columns, dtype, layout):
    """Odd sizes, padding that is not "same", channels that end within a tile, three chunks of channels."""
    layer = Layer(
        columns - 3, 24 if dtype == "float32" else 48, (5, 9, 9), kernel=(kernel, kernel), stride=(stride,) * 3,
        padding=(1, 0, 2), split=(11, 0, 13) if dtype == "float32" else (17, 16, 15), dtype=dtype, layout=layout,
    )  # fmt: skip
    assert f"voxels x {columns} channels" in plan(emulator, "backward_input", layer)
    check_integers(emulator, "backward_input", layer)


@pytest.mark.parametrize("channels", STEPS)
@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 1), (5, 2), (7, 2)])
@pytest.mark.parametrize("which", ["forward", "backward_input"])
def test_steps_of_one_view(emulator, which, kernel, stride, channels):
    """1, 2, 3 and 5 chunks of channels of each view alone: both stages are filled again and again."""
    emulator.configure(block_shared_bytes=SMALL_BLOCKS)
    sizes = (channels, 20) if which == "forward" else (20, channels)
    layer = Layer(
        *sizes, (4, 8, 9), kernel=(kernel, kernel), stride=(stride,) * 3, padding=(kernel // 2,) * 3,
        dtype="bfloat16", layout="channels_last",
    )  # fmt: skip
    for view in range(3):
        check_integers(emulator, which, replace(layer, split=one_view(layer, view)))


@pytest.mark.parametrize("dilation", [(2, 2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2)])
@pytest.mark.parametrize("channels", STEPS)
def test_steps_of_even_dilations(emulator, channels, dilation):
    """The same where an even dilation is that of the thin axis, of another one, or of all."""
    layer = Layer(
        20, channels, (5, 6, 9), stride=(2, 2, 2), dilation=dilation, padding=dilation, dtype="bfloat16",
        layout="channels_last",
    )  # fmt: skip
    for view in range(3):
        check_integers(emulator, "backward_input", replace(layer, split=one_view(layer, view)))


def test_positions_that_no_tap_reaches(emulator):
    """An even dilation of an axis, "same" padding: odd positions are zero, also where only a thin axis is dilated."""
    for dilation in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        layer = Layer(16, 24, (5, 6, 7), stride=(2, 2, 2), dilation=dilation, padding=dilation)
        axis = 2 + dilation.index(2)
        gradient = np.moveaxis(run_pass(emulator, "backward_input", layer, integer_data(layer)), axis, 0)
        assert not gradient[1::2].any() and all(plane.any() for plane in gradient[::2])


@pytest.mark.parametrize("more", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1, 3), (2, 3, 1), (4, 6, 5)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_classes_of_small_volumes(emulator, kernel, size, more):
    """Classes without voxels, and voxels that no output has read, whose gradient is zero."""
    least = max(0, (kernel - min(size) + 1) // 2)  # padding, for an output of one voxel
    layer = Layer(
        8, 9, size, kernel=(kernel, kernel), stride=(2, 2, 2), padding=(least + more,) * 3, dtype="float16"
    )
    check_integers(emulator, "backward_input", layer)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 1), (7, 2)])
def test_parts_of_the_reduction(emulator, which, kernel, stride):
    """Few tiles on a large GPU: several blocks share the rows of a tile."""
    emulator.configure(multiprocessors=200, block_shared_bytes=SMALL_BLOCKS)
    layer = Layer(
        72, 75, (3, 5, 6), kernel=(kernel, kernel), stride=(stride,) * 3, padding=(kernel // 2,) * 3,
        dtype="bfloat16", layout="channels_last",
    )  # fmt: skip
    check_integers(emulator, which, layer)


REAL = [
    Layer(20, 30, (5, 9, 8), stride=(2, 2, 2), dtype="float16", layout="channels_last"),
    Layer(20, 30, (5, 9, 8), stride=(2, 2, 2), dtype="float32"),
    Layer(20, 30, (3, 5, 8), kernel=(5, 5), padding=(2, 2, 2), dtype="float32", layout="channels_last"),
    Layer(20, 30, (5, 9, 8), kernel=(7, 7), stride=(2, 2, 2), padding=(3, 3, 3), dtype="float32"),
]


@pytest.mark.parametrize("which", ["forward", "backward_input"])
@pytest.mark.parametrize("layer", REAL, ids=str)
def test_close_on_real_values(emulator, layer, which):
    emulator.configure(block_shared_bytes=SMALL_BLOCKS)
    data = real_data(layer)
    exact = expected(which, layer, as_multiplied(layer, data))
    terms = layer.kernel[0] ** 2 * (layer.in_channels if which == "forward" else layer.out_channels)
    assert_close(run_pass(emulator, which, layer, data), exact, terms, layer.dtype)


@pytest.mark.parametrize("async_copies", ["early", "random"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("which", ["forward", "soft_backward_input"])
@pytest.mark.parametrize(
    "layer",
    [
        Layer(40, 36, (5, 9, 9), stride=(2, 2, 2), dtype="bfloat16", layout="channels_last"),
        Layer(20, 13, (3, 5, 8), kernel=(5, 5), padding=(2, 2, 2), dtype="float32", layout="contiguous"),
        Layer(20, 21, (5, 9, 9), kernel=(5, 5), stride=(2, 2, 2), dtype="float16", layout="channels_last"),
        MIXED,
    ],
    ids=str,
)
def test_any_schedule(emulator, layer, which, seed, async_copies):
    emulator.configure(
        schedule="random", seed=seed, async_copies=async_copies, block_shared_bytes=SMALL_BLOCKS
    )
    check_integers(emulator, which, layer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 1), (7, 2)])
def test_unaligned_storage(emulator, kernel, stride, layout):
    layer = Layer(
        20, 24, (3, 4, 9), kernel=(kernel, kernel), stride=(stride,) * 3, padding=(kernel // 2,) * 3,
        dtype="float16", layout=layout,
    )  # fmt: skip
    data = integer_data(layer)
    grad_output = unaligned(with_layout(to_storage(data.grad_output, "float16"), layout))
    check_integers(emulator, "backward_input", layer, grad_output=grad_output)


@pytest.mark.parametrize("kernel, taps", [(5, 61), (7, 127)])
def test_soft_reads_every_voxel_once(emulator, kernel, taps):
    """Of 75 (147) taps so many are left: per chunk of channels and warp, fragments of 16 voxels for those that count.

    Along H the taps of a row share fragments, K + 3 for 4 tiles, whether all count or not; along D each has its own.
    """
    layer = Layer(
        16, 20, (4, 8, 8), kernel=(kernel, kernel), padding=(kernel // 2,) * 3, dtype="bfloat16",
        layout="channels_last",
    )  # fmt: skip
    emulator.configure(detect_races=False, count_banks=True)
    emulator.take_bank_report()
    check_integers(emulator, "soft_forward", layer)
    along_depth = kernel * (kernel - 1)
    assert taps == kernel**2 + along_depth + (kernel - 1) ** 2
    fragments = (kernel + 3) * (kernel + kernel - 1) + 4 * along_depth
    assert emulator.take_bank_report()["ldmatrix"][0] == 4 * fragments


def test_forward_of_stride_2_keeps_the_whole_halo_where_it_fits(emulator):
    layer = Layer(32, 48, (8, 8, 8), stride=(2, 2, 2), dtype="bfloat16")
    assert "one view per warp" in plan(emulator, "forward", layer)


def test_what_is_left_to_cuda_cores(emulator):
    text = plan(emulator, "backward_input", Layer(16, 24, (12, 12, 12), kernel=(9, 9), dtype="bfloat16"))
    assert text == "not on tensor cores: the kernel is not 3 x 3, 5 x 5 or 7 x 7"


@pytest.mark.parametrize("which", ["forward", "backward_input", "soft_forward"])
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize(
    "kernel, stride, columns, dilation", [*((*tile, 1) for tile in TILES), (3, 2, 32, 2)]
)
def test_no_bank_conflicts(emulator, kernel, stride, columns, dilation, dtype, which):
    """ldmatrix and cp.async, from the addresses that the lanes use."""
    layer = Layer(
        16, 24, (4, 8, 8), kernel=(kernel, kernel), stride=(stride,) * 3, padding=(kernel // 2 * dilation,) * 3,
        dilation=(dilation,) * 3, dtype=dtype, layout="channels_last",
    )  # fmt: skip
    wide = columns - 8
    layer = replace(layer, in_channels=wide, split=None) if which == "backward_input" else layer
    if which.endswith("forward"):
        split = (wide, 0, 0) if which == "forward" else None
        layer = replace(layer, out_channels=wide, split=split)
    emulator.configure(detect_races=False, count_banks=True, block_shared_bytes=SMALL_BLOCKS)
    assert f"voxels x {columns} channels" in plan(emulator, which, layer)
    check_banks(emulator, lambda: check_integers(emulator, which, layer), *COUNTED)
