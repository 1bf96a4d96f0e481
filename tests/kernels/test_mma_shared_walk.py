"""The forward kernel of narrow layers on tensor cores, a walk shared by the views; more in test_mma_forward.py."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    LAYOUTS,
    Layer,
    assert_close,
    fields,
    forward,
    from_storage,
    problem,
    real_data,
    run_forward,
    to_storage,
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

#: Default splits, views that are empty, all in mixed columns, odd, and as wide as the tiles allow.
SPLITS = (
    (11, 11, 10), (8, 8, 8), (7, 7, 7), (2, 2, 1), (16, 0, 0), (0, 16, 8), (0, 0, 9), (5, 13, 7), (9, 8, 11),
    (1, 16, 1), (12, 12, 8), (8, 15, 9), (10, 9, 10),
)  # fmt: skip
TILES = (
    Tile("tile 8 x 8 x 8 voxels x 24 columns", (7, 8, 5), HOPPER, 3),
    Tile("tile 8 x 8 x 8 voxels x 32 columns", (11, 9, 12), HOPPER, 1),
    Tile("tile 4 x 8 x 8 voxels x 32 columns", (9, 10, 11), AMPERE, 3),
)


def check(emulator, layer: Layer) -> None:
    check_integers(emulator, "forward", layer, launcher="mma_shared_walk")


def plan(emulator, layer: Layer, name: str = "mma_shared_walk", **machine) -> str:
    return emulator.plan(name, fields(layer), **machine)[0]


def layers_and_machines(count: int, seed: int) -> list[tuple[Layer, int, int]]:
    """Layers of every split, each with a number of multiprocessors and their shared memory."""
    draw = random.Random(seed)
    chosen = []
    for i, layer in enumerate(mma_layers(count, seed, stride=(1, 1, 1), most_products=2e6)):
        split = SPLITS[i % len(SPLITS)]
        layer = replace(layer, out_channels=sum(split), split=split)
        chosen.append((layer, draw.choice((1, 1, 2, 5)), draw.choice((HOPPER, AMPERE))))
    return chosen


@pytest.mark.parametrize(
    "layer, multiprocessors, block_shared_bytes", layers_and_machines(52, seed=401), ids=str
)
def test_bit_equal_on_integers(emulator, layer, multiprocessors, block_shared_bytes):
    emulator.configure(multiprocessors=multiprocessors, block_shared_bytes=block_shared_bytes)
    check(emulator, layer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_every_tile(emulator, tile, dtype, layout):
    """Several tiles of voxels for a block."""
    layer = tile.layer(dtype, layout, (7, 9, 17))
    emulator.configure(block_shared_bytes=tile.block_shared_bytes)
    text = plan(emulator, layer, multiprocessors=1)
    assert tile.name in text and f"{tile.steps} steps" in text
    check(emulator, layer)


@pytest.mark.parametrize("multiprocessors", [1, 2, 3])
@pytest.mark.parametrize("channels", STEPS)
def test_steps_and_tiles_of_a_block(emulator, channels, multiprocessors):
    """1, 2, 3 and 5 steps; 5 tiles for 2, 4 and 5 blocks, so that some blocks have one more than others."""
    layer = Layer(channels, 20, (8, 2, 33), dtype="bfloat16", layout="channels_last")
    emulator.configure(multiprocessors=multiprocessors)
    text = plan(emulator, layer, multiprocessors=multiprocessors)
    assert f"5 tiles for {min(2 * multiprocessors, 5)} blocks, {channels // 16} steps" in text
    check(emulator, layer)


@pytest.mark.parametrize("async_copies", ["early", "random"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tile", TILES[1:], ids=lambda tile: tile.name)
def test_any_schedule(emulator, tile, layout, seed, async_copies):
    layer = tile.layer("bfloat16", layout, size=(7, 9, 9))
    emulator.configure(
        schedule="random", seed=seed, async_copies=async_copies, block_shared_bytes=tile.block_shared_bytes
    )
    check(emulator, layer)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
def test_close_on_real_values(emulator, dtype):
    layer = Layer(21, 32, (4, 9, 10), dtype=dtype, layout="channels_last")
    data = real_data(layer)
    output = run_forward(emulator, layer, data, launcher="mma_shared_walk")
    assert_close(output, forward(layer, as_multiplied(layer, data)), data.weight[0].size, dtype)


def test_float32_weight(emulator):
    """Autocast's float32 parameter is rounded while it is packed, as a cast would; the bias is not rounded."""
    layer = Layer(16, 32, (4, 9, 9), dtype="float16", layout="channels_last")
    data = real_data(replace(layer, dtype="float32"))
    input = with_layout(to_storage(data.input, layer.dtype), layer.layout)
    output = unwritten(layer.output_shape, layer.dtype, layer.layout)
    tensors = [input, data.weight.astype(np.float32), data.bias.astype(np.float32), output]
    emulator.run("mma_shared_walk_float32_weight", problem(layer, input, output), tensors)
    rounded = {
        name: from_storage(to_storage(getattr(data, name), layer.dtype), layer.dtype)
        for name in ("input", "weight")
    }
    assert_close(output, forward(layer, replace(data, **rounded)), data.weight[0].size, layer.dtype)


def test_batch_zero(emulator):
    check(emulator, Layer(16, 24, (3, 3, 3), batch=0, dtype="bfloat16"))


@pytest.mark.parametrize("dtype", MMA_DTYPES)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_no_bank_conflicts(emulator, tile, dtype):
    """ldmatrix and cp.async, from the addresses that the lanes use."""
    layer = tile.layer(dtype, "channels_last", size=(8, 8, 8))
    emulator.configure(detect_races=False, count_banks=True, block_shared_bytes=tile.block_shared_bytes)
    check_banks(emulator, lambda: check(emulator, layer), *COUNTED)


@pytest.mark.parametrize("split", [(8, 8, 8), (11, 11, 10)], ids=str)
def test_bank_conflicts_of_results(emulator, split):
    """None, but for reading back 32 channels, whose rows have an even number of 16 bytes (test_mma_epilogue.py)."""
    layer = Layer(16, sum(split), (8, 8, 8), split=split, dtype="float16", layout="channels_last")
    emulator.configure(detect_races=False, count_banks=True)
    emulator.take_bank_report(plain=True)
    check(emulator, layer)
    report = emulator.take_bank_report(plain=True)
    for access, times in (
        ("store of 4 bytes in mma_shared_walk.cuh", 1),
        ("load of 16 bytes in mma_resident.cuh", 2 if len(split) * 8 < sum(split) else 1),
    ):
        executed, wavefronts, least = report[access]
        assert executed > 0 and wavefronts == least * times, access


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"out_channels": 33}, "the views do not fit into its tiles of columns"),
        ({"split": (17, 8, 7)}, "the views do not fit into its tiles of columns"),
        ({"stride": (2, 2, 2)}, "for ACS forward with 3 x 3 kernels and stride 1 only"),
        ({"in_channels": 320}, "the weights do not fit into shared memory"),
    ],
)
def test_what_is_left_to_one_view_per_warp(emulator, change, reason):
    layer = Layer(32, 32, (32, 32, 32), dtype="bfloat16", layout="channels_last")
    layer = replace(layer, **{"split": None, **change})
    text = plan(emulator, layer)
    assert text.startswith("tensor cores, one view per warp")
    assert text.endswith(f"no shared walk: {reason}") or "stride" in reason


@pytest.mark.parametrize(
    "in_channels, out_channels, size, block_shared_bytes, expected",
    [
        (32, 32, 64, HOPPER, TILES[1].name),
        (32, 32, 64, AMPERE, TILES[2].name),
        (16, 16, 64, HOPPER, TILES[0].name),
        (32, 48, 64, HOPPER, "one view per warp"),
        (256, 32, 64, HOPPER, "one view per warp"),  # a lone block beside its weights
        (128, 32, 8, HOPPER, "one view per warp"),  # two tiles, whose reduction is better cut into parts
    ],
)
def test_the_cheaper_walk(emulator, in_channels, out_channels, size, block_shared_bytes, expected):
    layer = Layer(in_channels, out_channels, (size,) * 3, dtype="bfloat16", layout="channels_last")
    emulator.configure(
        block_shared_bytes=block_shared_bytes, compute_capability=90 if block_shared_bytes == HOPPER else 80
    )
    text = plan(emulator, layer, "tensor_cores", multiprocessors=132)
    assert expected in text.split(";")[0], text
