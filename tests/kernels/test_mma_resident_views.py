"""The forward kernel on tensor cores with one view per warp and weights that stay in shared memory."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from kernels.harness import (
    LAYOUTS,
    Layer,
    assert_close,
    fields,
    forward,
    integer_data,
    real_data,
    run_forward,
    to_storage,
    unaligned,
    unwritten,
    with_layout,
)
from kernels.mma_layers import (
    AMPERE,
    COUNTED,
    HOPPER,
    MMA_DTYPES,
    STEPS,
    Tile,
    as_multiplied,
    check_banks,
    check_integers,
    mma_layers,
)

LAUNCHER = "mma_resident_views"
#: Default splits, views that are empty, as wide as the tiles allow, and odd.
SPLITS = (
    (16, 16, 16), (24, 24, 24), (22, 21, 21), (11, 11, 10), (9, 0, 0), (0, 17, 24), (24, 0, 9), (13, 5, 16),
    (19, 24, 7), (1, 23, 2), (0, 0, 24), (15, 16, 12),
)  # fmt: skip
TILES = (
    Tile("tile 8 x 8 x 8 voxels x 16 channels", (15, 16, 12), HOPPER, 3),
    Tile("tile 4 x 8 x 8 voxels x 24 channels", (24, 19, 21), AMPERE, 3),
)


def check(emulator, layer: Layer, **options) -> None:
    check_integers(emulator, "forward", layer, launcher=LAUNCHER, **options)


def plan(emulator, layer: Layer, **machine) -> str:
    return emulator.plan(LAUNCHER, fields(layer), **machine)[0]


def layers_and_machines(count: int, seed: int) -> list[tuple[Layer, int, int]]:
    """Layers of every split, each with a number of multiprocessors and their shared memory."""
    draw = random.Random(seed)
    chosen = []
    for i, layer in enumerate(mma_layers(count, seed, stride=(1, 1, 1), most_products=2e6)):
        split = SPLITS[i % len(SPLITS)]
        most = 40 if layer.dtype == "float32" else 80  # input channels whose weights a block holds
        layer = replace(layer, in_channels=min(layer.in_channels, most), out_channels=sum(split), split=split)
        # A reduction of four steps may be cut into parts where there are more multiprocessors than tiles.
        long = layer.in_channels > (24 if layer.dtype == "float32" else 48)
        chosen.append((layer, 1 if long else draw.choice((1, 2)), draw.choice((HOPPER, AMPERE))))
    return chosen


@pytest.mark.parametrize(
    "layer, multiprocessors, block_shared_bytes", layers_and_machines(24, seed=611), ids=str
)
def test_bit_equal_on_integers(emulator, layer, multiprocessors, block_shared_bytes):
    emulator.configure(multiprocessors=multiprocessors, block_shared_bytes=block_shared_bytes)
    check(emulator, layer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_every_tile(emulator, tile, dtype, layout):
    """Several tiles of voxels for a block."""
    layer = tile.layer(dtype, layout, (9, 9, 17))
    emulator.configure(block_shared_bytes=tile.block_shared_bytes)
    text = plan(emulator, layer, multiprocessors=1)
    assert tile.name in text and f"{tile.steps} steps" in text and "tiles for 1 blocks" in text
    check(emulator, layer)


@pytest.mark.parametrize("multiprocessors", [1, 2, 3])
@pytest.mark.parametrize("channels", STEPS)
def test_steps_and_tiles_of_a_block(emulator, channels, multiprocessors):
    """1, 2, 3 and 5 steps; 5 tiles for 1 to 3 blocks, of which some have one more than others."""
    layer = Layer(channels, 36, (8, 2, 33), dtype="bfloat16", layout="channels_last")
    emulator.configure(multiprocessors=multiprocessors)
    text = plan(emulator, layer, multiprocessors=multiprocessors)
    assert f"5 tiles for {multiprocessors} blocks, {channels // 16} steps" in text
    check(emulator, layer)


@pytest.mark.parametrize("async_copies", ["early", "random"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_schedule(emulator, layout, seed, async_copies):
    tile = TILES[-1]
    emulator.configure(
        schedule="random", seed=seed, async_copies=async_copies, block_shared_bytes=tile.block_shared_bytes
    )
    check(emulator, tile.layer("bfloat16", layout, size=(7, 9, 9)))


@pytest.mark.parametrize("dtype", MMA_DTYPES)
def test_the_bits_of_one_view_per_warp(emulator, dtype):
    """On any values: the products are the same, in the same order."""
    layer = Layer(24, 43, (9, 9, 10), dtype=dtype, layout="channels_last")
    data = real_data(layer)
    output = run_forward(emulator, layer, data, launcher=LAUNCHER)
    assert (output == run_forward(emulator, layer, data, launcher="mma_forward")).all()
    assert_close(output, forward(layer, as_multiplied(layer, data)), data.weight[0].size, dtype)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unaligned_storage(emulator, dtype, layout):
    layer = Layer(16, 48, (3, 4, 9), dtype=dtype, layout=layout)
    input = unaligned(with_layout(to_storage(integer_data(layer).input, dtype), layout))
    check(emulator, layer, input=input, output=unaligned(unwritten(layer.output_shape, dtype, layout)))


def test_batch_zero(emulator):
    check(emulator, Layer(16, 48, (3, 3, 3), batch=0, dtype="bfloat16"))


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_no_bank_conflicts(emulator, tile, dtype):
    """ldmatrix and cp.async, from the addresses that the lanes use."""
    layer = tile.layer(dtype, "channels_last", size=(8, 8, 8))
    emulator.configure(detect_races=False, count_banks=True, block_shared_bytes=tile.block_shared_bytes)
    check_banks(emulator, lambda: check(emulator, layer), *COUNTED)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"out_channels": 24}, "for 9 to 24 channels of the widest view only"),
        ({"out_channels": 73}, "for 9 to 24 channels of the widest view only"),
        ({"in_channels": 144}, "the weights do not fit into shared memory"),
        ({"groups": 2, "in_channels": 128, "split": (64, 0, 0)}, "groups"),
        ({"size": (4, 4, 4)}, "the reduction is cut into parts"),
    ],
)
def test_what_is_left_to_others(emulator, change, reason):
    layer = Layer(64, 64, (32, 32, 32), dtype="bfloat16", layout="channels_last")
    layer = replace(layer, **{"split": None, **change})
    with pytest.raises(RuntimeError, match=reason):
        emulator.configure(multiprocessors=132)
        check(emulator, layer)


def test_only_where_it_is_asked_for(emulator):
    layer = Layer(64, 64, (32, 32, 32), dtype="bfloat16", layout="channels_last")
    assert "resident weights" not in emulator.plan("tensor_cores", fields(layer))[0]
