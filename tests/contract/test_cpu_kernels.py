"""The CPU implementations of the operators ``acsconv::fused_*``, called directly: any geometry, every ISA."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from cpu_problems import (
    BFLOAT16_ISAS,
    DTYPES,
    ISAS,
    LAYOUTS,
    PASSES,
    arrange,
    assert_close,
    depthwise_problem,
    is_channels_last,
    layer,
    layer_oracle,
    oracle,
    pointwise_problem,
    random_oracle,
    random_problem,
    run,
    wide_problem,
)

import acsconv_cuda  # noqa: F401  (defines and loads the operators)
from acsconv_cuda import _loader

pytestmark = pytest.mark.skipif(not _loader.loaded(), reason=f"no compiled part: {_loader.failure()}")

# channels, output channels, size, kernel, stride, groups, Soft ACS
LAYERS = [
    (40, 31, (6, 40, 70), 3, 1),  # several strips of rows, two slices of the reduction
    (36, 13, (8, 20, 21), 5, 1),
    (33, 64, (9, 33, 34), 3, 2),  # four phases, or eight classes
    (3, 20, (12, 30, 37), 7, 2),
    (100, 44, (4, 4, 4), 3, 1),  # rows far shorter than a vector
    (20, 40, (24, 14, 14), 3, 1),  # weights of one task, in several steps
    (20, 10, (30, 9, 3), 1, 1),
    (20, 22, (4, 5, 32), 3, 1),  # rows of whole vectors, and an odd number of them
    (9, 9, (13, 14, 20), 7, 1, 9),  # depthwise
    (16, 16, (26, 24, 20), 5, 1, 16),  # contiguous in several slabs
    (21, 21, (24, 2, 400), 3, 1, 21),  # channels-last slices in several pieces
    (17, 17, (100, 20, 6), 3, 1, 17),  # and several slices of pieces together
    (80, 160, (5, 7, 6), 3, 1, 40),  # several chunks of groups
    (20, 18, (7, 12, 19), 3, 1, 1, True),  # 19 displacements
    (18, 18, (7, 12, 19), 3, 2, 18, True),
    (32, 4, (5, 7, 11), 1, 1),  # channels-last: nothing is packed
    (80, 3, (5, 9, 70), 1, 2),
    (3, 20, (7, 14, 75), 4, 4),  # adjacent numbers go to all columns of phases and all channels
    (7, 9, (6, 9, 71), 3, 2),
]


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("isa", "dtype"), [*product(ISAS, DTYPES), *product(BFLOAT16_ISAS, [torch.bfloat16])], ids=str
)
def test_random_problems(monkeypatch, isa, layout, dtype, operation):
    monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
    for seed in range(12):
        problem = random_problem(seed, layout)
        if dtype != torch.float32:
            problem = problem.to(dtype)
        assert_close(problem, operation, random_oracle(seed, layout, operation))


def assert_close_in_all_variants(monkeypatch, problem, operation):
    """With every instruction set and dtype."""
    expected = oracle(problem, operation)
    for isa in (*ISAS, *BFLOAT16_ISAS):
        monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
        for dtype in DTYPES if isa in ISAS else [torch.bfloat16]:
            assert_close(problem if dtype == torch.float32 else problem.to(dtype), operation, expected)


@pytest.mark.parametrize("operation", PASSES[:2])
@pytest.mark.parametrize("seed", range(8))
def test_wide_problems(monkeypatch, seed, operation):
    assert_close_in_all_variants(monkeypatch, wide_problem(seed, LAYOUTS[seed % 2]), operation)


@pytest.mark.parametrize("operation", PASSES[:2])
@pytest.mark.parametrize("seed", range(20))
def test_pointwise_problems(monkeypatch, seed, operation):
    assert_close_in_all_variants(monkeypatch, pointwise_problem(seed, LAYOUTS[seed % 5]), operation)


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("seed", range(15))
def test_depthwise_problems(monkeypatch, seed, operation):
    assert_close_in_all_variants(monkeypatch, depthwise_problem(seed, LAYOUTS[seed % 5]), operation)


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("arguments", LAYERS, ids=str)
def test_layers(monkeypatch, isa, arguments, operation):
    monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
    problem = layer(*arguments)
    expected = layer_oracle(arguments, operation)
    assert_close(problem, operation, expected)
    last = problem.input.contiguous(memory_format=torch.channels_last_3d)
    assert_close(problem._replace(input=last), operation, expected)


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("isa", BFLOAT16_ISAS)
@pytest.mark.parametrize(
    "arguments",
    [
        *(LAYERS[i] for i in (0, 1, 2, 4, 9, 10, 12)),
        (256, 70, (6, 20, 33), 3, 1),  # several strips; blocks of 32 and 16 channels
        (16, 48, (7, 9, 21), 3, 1),  # a step takes in two taps
        (8, 24, (7, 9, 21), 7, 1),  # and up to four
        (21, 40, (7, 9, 41), 3, 2),  # channels that fall between lines of the cache, in four phases
        (64, 64, (5, 6, 7), 3, 1, 4),  # a panel for each group
    ],
    ids=str,
)
def test_layers_in_bfloat16(monkeypatch, isa, arguments, operation):
    monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
    problem = layer(*arguments).to(torch.bfloat16)
    expected = layer_oracle(arguments, operation)
    assert_close(problem, operation, expected)
    last = problem.input.contiguous(memory_format=torch.channels_last_3d)
    assert_close(problem._replace(input=last), operation, expected)


@pytest.mark.parametrize("isa", BFLOAT16_ISAS)
def test_channels_that_may_be_no_pairs(monkeypatch, isa):
    """All the same numbers; an odd distance between voxels; an even one, from an odd number on."""
    monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
    problem = layer(32, 24, (5, 6, 17)).to(torch.bfloat16)
    voxels = torch.randn(2, 5, 6, 17, 34).to(torch.bfloat16)
    for input in (
        torch.randn(2, 1, 5, 6, 17).to(torch.bfloat16).expand(-1, 32, -1, -1, -1),
        voxels[..., :33].contiguous()[..., :32].movedim(-1, 1),
        voxels[..., 1:33].movedim(-1, 1),
        voxels.movedim(-1, 1).contiguous()[:, 1:33],
    ):
        assert_close(problem._replace(input=input), "forward")


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize(("isa", "flag"), list(zip(BFLOAT16_ISAS, ("amx_bf16", "avx512_bf16"))))
def test_products_of_bfloat16_are_used_where_the_processor_has_them(monkeypatch, isa, flag, operation):
    """Sums in another order, some of which are rounded otherwise."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or f" {flag} " not in flags.read_text():
        pytest.skip(f"this processor does not multiply bfloat16 numbers ({flag})")
    problem = layer(64, 96, (8, 16, 16)).to(torch.float64).apply(torch.randn_like).to(torch.bfloat16)
    grad_output = torch.randn_like(problem.grad_output())
    found = []
    for name in (isa, "avx512"):
        monkeypatch.setenv("ACSCONV_CPU_ISA", name)
        found.append(run(problem, operation, grad_output)[0])
    assert not torch.equal(*found)


@pytest.mark.parametrize("operation", PASSES)
def test_positions_far_outside_read_zero(operation):
    problem = layer(4, 6, (5, 6, 7))
    assert_close(problem._replace(origin=[2**29] * 9), operation)
    wide = problem._replace(dilation=[2**20 if number == -1 else 1 for number in problem.origin])
    assert_close(wide, operation)
    assert_close(problem._replace(stride=[2, 50, 9], output_size=[3, 1, 1]), operation)


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("shape", [(0, 4, 5, 6, 7), (2, 0, 5, 6, 7), (2, 4, 0, 6, 7)])
def test_empty_inputs(shape, operation):
    problem = layer(shape[1], 6, (5, 6, 7))._replace(input=torch.empty(shape))
    assert_close(problem, operation)
    assert_close(problem._replace(output_size=[0, 6, 7]), operation)


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 32])
def test_empty_outputs(groups, dtype, operation):
    problem = layer(32, 32, (5, 6, 7), 3, 1, groups).to(dtype)
    for size in ([0, 6, 7], [5, 0, 7], [5, 6, 0]):
        assert_close(problem._replace(output_size=size), operation)


def test_half_precision_as_pytorch_converts_it():
    """Every float16 and bfloat16 number through a 1x1 kernel, and sums that have to be rounded."""
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
        identity = layer(1, 1, (16, 64, 64), 1)._replace(bias=None).to(dtype)
        identity.weight.fill_(1)
        (out,) = run(identity._replace(input=numbers.reshape(1, 1, 16, 64, 64)))
        # A sum begins with zero, and so is never -0.
        torch.testing.assert_close(out.flatten(), numbers + 0, rtol=0, atol=0, equal_nan=True)
        halves = (numbers.float() + numbers.roll(1).float()).to(dtype)
        pair = torch.stack([numbers, numbers.roll(1)]).reshape(1, 2, 16, 64, 64)
        two = layer(2, 1, (16, 64, 64), 1)._replace(bias=None).to(dtype)
        two.weight.fill_(1)
        (out,) = run(two._replace(input=pair))
        torch.testing.assert_close(out.flatten(), halves, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "arguments", [(20, 20, (64, 64, 64), 3, 1, 20), (1, 6, (64, 64, 64)), (20, 6, (48, 48, 48))]
)
def test_long_sums_keep_their_digits(arguments):
    """Sums over all voxels, of numbers that do not cancel; one chain of float32 additions would be off by 1e-6."""
    problem = layer(*arguments)
    problem = problem._replace(input=torch.rand(problem.input.shape))
    grad_output = torch.rand(problem.output_shape)
    found = run(problem, "backward_weight", grad_output)
    exact = run(problem.to(torch.float64), "backward_weight", grad_output.double())
    for a, b in zip(found, exact, strict=True):
        assert ((a.double() - b).abs().max() / b.abs().max()) < 5e-7


@pytest.mark.parametrize("arguments", [(1, 32, (32, 32, 32)), (32, 32, (32, 32, 32))])
def test_gradient_of_the_bias_is_rounded_about_once(arguments):
    """Within one unit in the last place, PyTorch's own sum is within two; chains of additions were off by 2.5."""
    problem = layer(*arguments)
    torch.manual_seed(0)
    for grad_output in (torch.rand(problem.output_shape), torch.randn(problem.output_shape) + 0.2):
        exact = grad_output.double().sum((0, 2, 3, 4))
        unit = torch.finfo(torch.float32).eps * torch.exp2(exact.abs().log2().floor())
        found = run(problem, "backward_weight", grad_output)[1]
        assert ((found.double() - exact).abs() / unit).max() <= 1


# --- the same, whoever computes it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", PASSES)
@pytest.mark.parametrize(
    ("isa", "dtype"), [*product(ISAS, [torch.float32]), *product(BFLOAT16_ISAS, [torch.bfloat16])], ids=str
)
def test_threads_do_not_change_the_result(monkeypatch, isa, dtype, operation):
    monkeypatch.setenv("ACSCONV_CPU_ISA", isa)
    before = torch.get_num_threads()
    try:
        for problem in [
            layer(40, 31, (6, 40, 70)),
            layer(64, 64, (5, 5, 5)),
            layer(160, 96, (4, 4, 4)),  # blocks shared out, each packed by its task
            layer(9, 9, (13, 14, 20), 7, 1, 9),
            layer(53, 53, (9, 17, 13), 7, 1, 53)._replace(input=arrange([1, 53, 9, 17, 13], "channels_last")),
            layer(20, 18, (7, 12, 19), 3, 2, 1, True),
            random_problem(3, "contiguous"),
            layer(70, 31, (20, 12, 15), 1, 2),
            layer(70, 32, (10, 12, 9), 1)._replace(input=arrange([1, 70, 10, 12, 9], "channels_last")),
            layer(80, 3, (10, 12, 9), 1)._replace(input=arrange([1, 80, 10, 12, 9], "channels_last")),
        ]:
            problem = problem.apply(torch.rand_like).to(dtype)
            results = []
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                results.append(run(problem, operation))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("operation", ["forward", "backward_input"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "arguments",
    [
        (20, 18, (6, 7, 40)),
        (53, 53, (9, 17, 13), 7, 1, 53),
        (70, 31, (9, 8, 7), 1, 2),
        (70, 32, (9, 8, 7), 1),
        (80, 3, (9, 8, 7), 1),
        (32, 4, (9, 8, 37), 1),
        (4, 32, (9, 8, 37), 1),
    ],
    ids=str,
)
def test_layout_does_not_change_the_result_and_is_kept(arguments, dtype, operation):
    problem = layer(*arguments).apply(torch.rand_like).to(dtype)
    last = problem._replace(input=problem.input.contiguous(memory_format=torch.channels_last_3d))
    (plain,), (other,) = run(problem, operation), run(last, operation)
    assert plain.is_contiguous()
    assert is_channels_last(other)
    assert torch.equal(plain, other)


def test_an_input_in_both_formats_gives_contiguous():
    problem = layer(1, 6, (5, 6, 7))
    last = problem.input.contiguous(memory_format=torch.channels_last_3d)
    assert run(problem._replace(input=last))[0].is_contiguous()


@pytest.mark.parametrize("operation", ["forward", "backward_input"])
def test_weight_and_bias_may_be_views(operation):
    problem = layer(4, 6, (5, 6, 7))
    weight = problem.weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    bias = problem.bias.repeat_interleave(2)[::2]
    assert torch.equal(
        run(problem._replace(weight=weight, bias=bias), operation)[0], run(problem, operation)[0]
    )


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(4, 5, 6, 7)}, "input must have 5 dimensions, got 4"),
        ({"input": torch.zeros(1, 4, 5, 6, 7, dtype=torch.int32)}, "weight must have the dtype of input"),
        ({"weight": torch.zeros(6, 4, 3)}, "weight must have 4 dimensions, got 3"),
        ({"weight": torch.zeros(6, 5, 3, 3)}, "weight must have 4 input channels per group, got 5"),
        ({"bias": torch.zeros(5)}, "bias must have 6 elements"),
        ({"bias": torch.zeros(6, dtype=torch.float64)}, "bias must have the dtype of input"),
        ({"split": [2, 2]}, "split needs 3 numbers, got 2"),
        ({"split": [2, 2, 3]}, "split must sum to the 6 output channels"),
        ({"split": [7, -1, 0]}, "split must lie in [0, 2^30], got -1"),
        ({"stride": [1, 0, 1]}, "stride must lie in [1, 2^30], got 0"),
        ({"origin": [0] * 8}, "origin needs 9 numbers, got 8"),
        ({"origin": [-(2**40)] * 9}, "origin must lie in"),
        ({"dilation": [0] * 9}, "dilation must lie in [1, 2^30], got 0"),
        ({"output_size": [1, -1, 1]}, "output_size must lie in [0, 2^30], got -1"),
        ({"groups": 4}, "groups = 4 must divide the 4 input and 6 output channels"),
        ({"groups": 0}, "groups = 0 must divide"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(RuntimeError) as error:
        run(layer(4, 6, (5, 6, 7))._replace(**change))
    assert f"acsconv: {message}" in str(error.value)


@pytest.mark.parametrize("operation", PASSES)
def test_other_dtypes_are_refused(operation):
    problem = layer(4, 6, (5, 6, 7))
    with pytest.raises(RuntimeError, match=r"float64, float32, float16 or bfloat16"):
        run(problem.to(torch.int32), operation, problem.grad_output().to(torch.int32))


@pytest.mark.parametrize(
    ("change", "grad_output", "message"),
    [
        ({}, (6, 5, 6, 7), "grad_output must have 5 dimensions, got 4"),
        ({}, (1, 5, 5, 6, 7), "grad_output must have 6 channels, got 5"),
        ({"weight": torch.zeros(6, 4, 3)}, (1, 6, 5, 6, 7), "weight must have 4 dimensions, got 3"),
        ({"weight": torch.zeros(2, 6, 4, 3, 3), "split": []}, (1, 6, 5, 6, 7), "the kernels of three views"),
        ({"groups": 4}, (1, 6, 5, 6, 7), "groups = 4 must divide"),
        ({"stride": [1, 0, 1]}, (1, 6, 5, 6, 7), "stride must lie in [1, 2^30], got 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_of_the_gradient_of_the_input_are_named(change, grad_output, message):
    with pytest.raises(RuntimeError) as error:
        run(layer(4, 6, (5, 6, 7))._replace(**change), "backward_input", torch.zeros(grad_output))
    assert f"acsconv: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "grad_output", "message"),
    [
        ({"input": torch.zeros(4, 5, 6, 7)}, (1, 6, 5, 6, 7), "input must have 5 dimensions, got 4"),
        ({}, (6, 5, 6, 7), "grad_output must have 5 dimensions, got 4"),
        ({}, (2, 6, 5, 6, 7), "grad_output must have the batch size of input"),
        ({"split": [2, 2, 3]}, (1, 6, 5, 6, 7), "split must sum to the 6 output channels"),
        ({"groups": 4}, (1, 6, 5, 6, 7), "groups = 4 must divide"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_of_the_gradient_of_the_weight_are_named(change, grad_output, message):
    with pytest.raises(RuntimeError) as error:
        run(layer(4, 6, (5, 6, 7))._replace(**change), "backward_weight", torch.zeros(grad_output))
    assert f"acsconv: {message}" in str(error.value)
