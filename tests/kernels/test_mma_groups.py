"""Groups of channels on tensor cores, in the emulator: forward, both gradients, ACS and Soft ACS.

The passes are run as the dispatcher runs them: a launch for every run of groups (csrc/group_runs.h).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from kernels.harness import (
    Layer,
    assert_close,
    assert_equal,
    backward_bias,
    backward_weight,
    forward,
    integer_data,
    problem,
    real_data,
    run_forward,
    to_storage,
    unaligned,
    unwritten,
    with_layout,
)
from kernels.mma_layers import (
    COUNTED,
    PASSES,
    STEPS,
    as_multiplied,
    check_banks,
    check_integers,
    check_weight_integers,
    grouped_layers,
    plan,
)
from kernels.planting import WRONG, copy_sources, leave_out, replace_once

#: ResNeXt-like: 4 groups of 16 channels, of which the second one and the third are cut by a view.
LAYER = Layer(64, 64, (3, 5, 9), groups=4, dtype="bfloat16", layout="channels_last")
#: Runs of several groups in every view, none of which is cut.
WHOLE = Layer(48, 72, (3, 4, 9), groups=6, split=(24, 24, 24), dtype="float16", layout="channels_last")
#: Two groups in one run, one that is cut, one alone; all so narrow that the views could share a walk.
UNEVEN = replace(LAYER, out_channels=32, split=(20, 12, 0))


def plans(emulator, which: str, layer: Layer) -> list[str]:
    """Descriptions of the plans of a layer's runs."""
    return plan(emulator, which, layer).split("\n")


def check(emulator, which: str, layer: Layer, **arrays: np.ndarray) -> None:
    """One of ``PASSES`` is planned on tensor cores and gives the oracle's result to the bit."""
    assert all(text.startswith("tensor cores") for text in plans(emulator, which, layer))
    check_integers(emulator, which, layer, launcher=which, **arrays)


def check_weight(emulator, layer: Layer) -> None:
    assert all("blocks" in text for text in plans(emulator, "backward_weight", layer))
    check_weight_integers(emulator, layer, launcher="backward_weight")


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("layer", grouped_layers(12, seed=141), ids=str)
def test_bit_equal_on_integers(emulator, layer, which):
    check(emulator, which, layer)


@pytest.mark.parametrize("layer", grouped_layers(14, seed=142), ids=str)
def test_gradients_of_the_weight(emulator, layer):
    check_weight(emulator, layer)


@pytest.mark.parametrize("layer", grouped_layers(2, seed=143), ids=str)
def test_soft_gradient_of_the_weight(emulator, layer):
    check_weight_integers(emulator, layer, launcher="soft_backward_weight")


@pytest.mark.parametrize("which", ["backward_input", "soft_backward_input"])
def test_even_dilations_of_stride_2(emulator, which):
    """A cut group, and whole ones; positions that no tap of any group reaches."""
    for layer in (LAYER, WHOLE):
        check(emulator, which, replace(layer, stride=(2, 2, 2), dilation=(1, 2, 2), padding=(1, 2, 3)))


@pytest.mark.parametrize("which", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("channels", STEPS)
def test_steps(emulator, channels, which):
    """1, 2, 3 and 5 steps of the reduction, or tiles of a part of the gradient of the weight."""
    layer = Layer(2 * channels, 2 * channels, (3, 4, 9), groups=2, dtype="bfloat16", layout="channels_last")
    if which == "backward_weight":
        check_weight(emulator, replace(LAYER, size=(3, 4, channels // 2 - 3)))
    else:
        check(emulator, which, layer)


@pytest.mark.parametrize("which", ["forward", "backward_input", "backward_weight"])
def test_parts(emulator, which):
    """Few tiles on a large GPU: parts of a group's reduction have places of their own in the workspace."""
    emulator.configure(multiprocessors=10**4)
    layer = Layer(192, 192, (3, 5, 9), groups=3, split=(64, 64, 64), dtype="bfloat16", layout="channels_last")
    assert all(re.search(r"[2-9]\d* parts", text) for text in plans(emulator, which, layer))
    check_weight(emulator, layer) if which == "backward_weight" else check(emulator, which, layer)


@pytest.mark.parametrize("which", PASSES)
def test_any_schedule(emulator, which):
    emulator.configure(schedule="random", seed=5, async_copies="random")
    check(emulator, which, LAYER)
    if which == "forward":
        check_weight(emulator, replace(LAYER, size=(3, 5, 17)))


def test_unaligned_storage(emulator):
    data = integer_data(LAYER)
    input = unaligned(with_layout(to_storage(data.input, LAYER.dtype), LAYER.layout), 3)
    check(emulator, "forward", LAYER, input=input)


def test_only_the_groups_own_channels(emulator):
    """A group of 8 channels is half a step: what lies beside it in memory is not read, so NaN stay in their group."""
    data = integer_data(WHOLE)
    data.input[:, 8:16] = np.nan
    output = run_forward(emulator, WHOLE, data, launcher="forward").astype(np.float64)
    assert np.isnan(output[:, 12:24]).any()
    others = np.r_[0:12, 24:72]
    data.input[:, 8:16] = 0
    np.testing.assert_array_equal(output[:, others], forward(WHOLE, data)[:, others])


def test_float32_parameters(emulator):
    """Weight, bias and their gradients in float32 beside 16 bits, as autocast has them: of every run its own."""
    data = integer_data(LAYER)
    input = with_layout(to_storage(data.input, LAYER.dtype), LAYER.layout)
    grad_output = with_layout(to_storage(data.grad_output, LAYER.dtype), LAYER.layout)
    output = unwritten(LAYER.output_shape, LAYER.dtype, LAYER.layout)
    fields = problem(LAYER, input, output)
    parameters = [data.weight.astype(np.float32), data.bias.astype(np.float32)]
    emulator.run("forward_float32_weight", fields, [input, *parameters, output])
    assert_equal(output, forward(LAYER, data), LAYER.dtype)
    emulator.run("backward_weight_float32", fields, [grad_output, input, *parameters])  # overwritten
    assert_equal(parameters[0], backward_weight(LAYER, data), "float32")
    assert_equal(parameters[1], backward_bias(LAYER, data), "float32")


def test_rounded_as_on_tensor_cores(emulator):
    """float32 is rounded to TF32 in the runs that the dispatcher launches, so these are the kernels that ran."""
    layer = replace(LAYER, dtype="float32")
    data = real_data(layer)
    exact, result = forward(layer, data), run_forward(emulator, layer, data, launcher="forward")
    assert_close(result, forward(layer, as_multiplied(layer, data)), 9 * 16, layer.dtype)
    assert np.abs(result - exact).max() > 1e-4


@pytest.mark.parametrize("which", ["forward", "backward_input", "backward_weight"])
def test_runs(emulator, which):
    """Groups that no view cuts are one launch for each view; one that is cut is a launch of its own."""
    for layer, groups in (
        (WHOLE, (2, 2, 2)),
        (LAYER, (1, 1, 1, 1)),
        (replace(WHOLE, split=(72, 0, 0)), (6,)),
    ):
        found = [re.search(r"of (\d+) groups", text) for text in plans(emulator, which, layer)]
        assert tuple(int(match[1]) if match else 1 for match in found) == groups


@pytest.mark.parametrize(
    "settings, printed",
    [
        ({"ACSCONV_FORWARD_WALK": "shared"}, {"one view per warp: tile": 1, "shared by the views: tile": 2}),
        ({"ACSCONV_FORWARD_WALK": "view", "ACSCONV_TMA": "1"}, {"not by TMA: groups": 1, "loaded by TMA": 2}),
    ],
    ids=["shared", "tma"],
)
def test_single_groups_are_layers_of_their_own(emulator_module, settings, printed):
    """A run of one group, such as views cut, may go by the shared walk or by TMA; several groups at once do not.

    In a process of its own, since the settings are read once.
    """
    program = f"""
import importlib.util
from kernels.mma_layers import check_integers
from kernels.test_mma_groups import UNEVEN
spec = importlib.util.spec_from_file_location("acsconv_emulator", {emulator_module.__file__!r})
emulator = importlib.util.module_from_spec(spec)
spec.loader.exec_module(emulator)
check_integers(emulator, "forward", UNEVEN, launcher="forward")
"""
    settings = {**settings, "ACSCONV_PRINT_PLAN": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {words: done.stderr.count(words) for words in printed} == printed, done.stderr


@pytest.mark.parametrize("which", ["forward", "backward_input", "backward_weight"])
def test_small_groups_are_left_to_cuda_cores(emulator, which):
    for change in ({"in_channels": 42}, {"out_channels": 42, "split": (14, 14, 14)}):
        (text,) = plans(emulator, which, replace(WHOLE, **change))
        assert text.endswith("groups of fewer than 8 channels")


def test_views_of_a_launch_must_be_the_same(emulator):
    with pytest.raises(RuntimeError, match="groups of several views"):
        run_forward(emulator, WHOLE, integer_data(WHOLE), launcher="mma_forward")


@pytest.mark.parametrize("which", ["forward", "backward_input"])
def test_no_bank_conflicts(emulator, which):
    emulator.configure(detect_races=False, count_banks=True)
    layer = replace(WHOLE, in_channels=96, out_channels=96, split=(32, 32, 32))
    check_banks(emulator, lambda: check(emulator, which, layer), *COUNTED)


BUGS = [  # of the gradient of the weight: test_mma_weight_bugs.py
    ("mma_work.cuh", "{group * work.reduced * work.source.channel,", "{0,"),
    ("mma_pack.cu", "group_of_block(work, block) * group_pairs", "0"),
    ("dispatch.cu", "run.first_output * p.output.channel;", "0;"),
]


@pytest.mark.parametrize("file, old, new", BUGS, ids=[file for file, _, _ in BUGS])
def test_bug_is_found(emulator_builder, tmp_path, file, old, new):
    root = tmp_path / "csrc"
    copy_sources(root)
    replace_once(root / "kernels" / file, old, new)
    if file == "mma_work.cuh":  # what the layer does not need is not compiled again
        scalars = {"bf16": "BFloat16", "tf32": "float", "f16": "Float16"}
        unused = {name: scalar for name, scalar in scalars.items() if name != "bf16"}
        leave_out(root, "view_per_warp", "int", unused)
        leave_out(root, "view_per_step", "int, bool", scalars)
        leave_out(root, "tap_rows", "int", scalars)
        leave_out(root, "tma_forward", "int", scalars)
        leave_out(root, "tma_view_per_step", "int, bool", scalars)
        leave_out(root, "shared_walk", "int", scalars, "mma_shared_walk_launch.h", "SharedWalkLauncher")
        leave_out(
            root, "resident_views", "int", scalars, "mma_resident_views_launch.h", "ResidentViewsLauncher"
        )
    module = emulator_builder.variant_module(root)
    module.configure()
    with pytest.raises((RuntimeError, AssertionError)) as found:
        check(module, "forward", replace(WHOLE, dtype="bfloat16"))
    assert re.search("RACE|device read|" + WRONG, str(found.value)), str(found.value)
