"""csrc/plan.h decides alone, without a GPU: tiles, memory order, workspace, and the reason of a rejection."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from kernels.harness import LAYOUTS, STORAGE, Layer, fields, generated_layers

H200 = 132  # multiprocessors


@pytest.mark.parametrize(
    "layer, expected",
    [
        (Layer(64, 64, (48, 48, 48)), "tile 192 voxels x 24 channels"),  # views of 22, 21, 21
        (Layer(96, 96, (48, 48, 48)), "tile 256 voxels x 32 channels"),
        (Layer(128, 128, (32, 32, 32)), "tile 192 voxels x 48 channels"),  # 43, 43, 42
        (Layer(192, 192, (32, 32, 32)), "tile 256 voxels x 64 channels"),
        (Layer(32, 32, (48, 48, 48)), "tile 128 voxels x 16 channels"),  # 11, 11, 10
        (Layer(320, 320, (4, 4, 4)), "tile 128 voxels x 16 channels"),  # too few voxels for more
    ],
    ids=str,
)
def test_tile_fits_the_views(emulator_module, layer, expected):
    text, _ = emulator_module.plan("forward", fields(layer), multiprocessors=H200)
    assert expected in text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", ["forward", "backward_input", "backward_weight"])
def test_warps_follow_the_memory(emulator_module, step, layout):
    text, _ = emulator_module.plan(step, fields(Layer(32, 32, (16, 16, 16), layout=layout)))
    assert ("channels along a warp" if layout == "channels_last" else "voxels along a warp") in text


@pytest.mark.parametrize("soft", [False, True])
def test_workspace_is_bounded(emulator_module, soft):
    wide = [
        Layer(c, c, (s, s, s), dtype=dtype) for c in (16, 256, 2048) for s in (1, 8, 200) for dtype in STORAGE
    ]
    for layer in [*wide, *generated_layers(200, seed=31)]:
        for multiprocessors in (1, H200, 10**6):
            _, workspace = emulator_module.plan("backward_weight", fields(layer), soft, multiprocessors)
            assert workspace <= 64 << 20


def test_large_volumes_are_split(emulator_module):
    text, workspace = emulator_module.plan("backward_weight", fields(Layer(32, 32, (96, 96, 96))))
    parts, voxels = map(int, re.search(r"(\d+) parts of (\d+) voxels", text).groups())
    assert workspace == parts * 32 * (32 * 9 + 1) * 4
    assert (parts - 1) * voxels < 96**3 <= parts * voxels


@pytest.mark.parametrize(
    "layer, expected",
    [
        (Layer(1, 64, (32, 32, 32)), "narrow tiles of 32"),  # 10 columns
        (
            Layer(3, 64, (64, 64, 64), kernel=(7, 7), padding=(3, 3, 3)),
            "narrow tiles of 32",
        ),  # 148: 160, not 256
        (Layer(64, 64, (16, 16, 16)), "wide tiles"),
    ],
    ids=str,
)
def test_weight_tiles_fit_the_columns(emulator_module, layer, expected):
    text, _ = emulator_module.plan("backward_weight", fields(layer), multiprocessors=H200)
    assert expected in text


@pytest.mark.parametrize(
    "layer, text",
    [
        (Layer(4, 6, (5, 5, 5)), "19 folded taps"),
        (Layer(4, 6, (5, 5, 5), stride=(2, 1, 3), dilation=(2, 1, 1), padding=(0, 2, 1)), "19 folded taps"),
        (Layer(4, 6, (5, 5, 5), kernel=(5, 5)), "not folded: the kernel is not 3 x 3"),
        (Layer(4, 6, (5, 5, 5), dtype="bfloat16"), "19 folded taps"),  # in float32
    ],
    ids=str,
)
def test_soft_kernels_are_folded(emulator_module, layer, text):
    for step in ("forward", "backward_input"):
        found, workspace = emulator_module.plan(step, fields(layer), soft=True)
        assert text in found
        assert workspace == (3 * 6 * 4 * 9 * 4 if "19" in text else 0)
    moved = fields(layer) | {"origin": ((0, -1, -1), (-1, 1, -1), (-1, -1, 0))}
    assert "19" not in emulator_module.plan("forward", moved, soft=True)[0]


def test_rejection_has_a_reason(emulator_module):
    text, _ = emulator_module.plan("forward", fields(Layer(1, 3, (3, 3, 3))) | {"in_size": (3, 3, 2**30)})
    assert text == "gather: a volume axis longer than 2^28 is not supported"


def test_plan_is_printed_on_request(emulator_module):
    script = (
        "import importlib.util, numpy as np\n"
        f"spec = importlib.util.spec_from_file_location('acsconv_emulator', {emulator_module.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "one = [1, 1, 1]; zero = np.zeros(1, np.float32)\n"
        "fields = dict(type='float32', batch=1, in_channels=1, out_channels=1, groups=1, kernel_h=1, kernel_w=1,\n"
        "    in_size=one, out_size=one, split=[1, 0, 0], stride=one, origin=[[0] * 3] * 3, dilation=[one] * 3,\n"
        "    input_strides=[2] * 5, output_strides=[2] * 5)\n"
        "module.run('simt_forward', fields, [zero, zero, None, zero])\n"
    )
    for value, printed in (("1", True), (None, False), ("", False), ("0", False)):
        environment = {k: v for k, v in os.environ.items() if k != "ACSCONV_PRINT_PLAN"}
        if value is not None:
            environment["ACSCONV_PRINT_PLAN"] = value
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("acsconv: depthwise: voxels along a warp" in done.stderr) == printed
