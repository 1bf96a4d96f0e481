"""Backends: which are there, what is chosen, and that all compute the same."""

import subprocess
import sys

import pytest
import torch
from cases import CASES
from numerics import Problem, brute_force, random_problems, relative_error

import acsconv_cuda
from acsconv_cuda import _loader, acs_conv3d
from acsconv_cuda.backends import FUSED_DTYPES, PASSES, choose
from acsconv_cuda.geometry import resolve
from acsconv_cuda.ops import Arguments


def test_backends_are_listed_with_reasons():
    listed = acsconv_cuda.backends()
    assert list(listed) == ["cuda", "cpu", "torch"]
    assert listed["torch"]
    for name, available in listed.items():
        reason = acsconv_cuda.why_unavailable(name)
        assert acsconv_cuda.is_available(name) == available == (reason is None)
        assert reason is None or (reason == reason.strip() and len(reason) > 10)
    assert "expected one of" in acsconv_cuda.why_unavailable("tpu")
    assert not acsconv_cuda.is_available("tpu")


@pytest.mark.parametrize("problem", random_problems(80, seed=1), ids=str)
def test_every_backend_computes_the_definition(backend, device, problem):
    for dtype in FUSED_DTYPES.get(backend, (torch.float64, torch.float32)):
        if dtype.itemsize < 4:
            continue
        input, weight, bias = (t.to(device) for t in problem.tensors(dtype))
        options = {"split": problem.split, "stride": problem.stride, "padding": problem.padding}
        options |= {"dilation": problem.dilation, "groups": problem.groups}
        out = acs_conv3d(input, weight, bias, backend=backend, **options).cpu()
        expected = brute_force(*problem.tensors(), problem.split, problem.geometry, problem.groups)
        assert torch.equal(out.double(), expected)  # small integers: exact in any order of summation
        without_bias = acs_conv3d(input, weight, backend=backend, **options).cpu()
        assert torch.equal(without_bias.double(), expected - problem.tensors()[2][:, None, None, None])
        assert out.is_contiguous(memory_format=acsconv_cuda.reference.memory_format(input))


SMALL_CASES = [case for case in CASES if case.kind == "acs" and case.flops() < 4e8]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_error_of_real_values(backend, device, case, channels_last):
    """No more than twice the error of the same maths in PyTorch at the same dtype, with a floor of 2 ulp."""
    input = torch.randn(case.batch, case.in_channels, *case.size)
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(case.out_channels, case.in_channels // case.groups, *(case.kernel_size,) * 2)
    options = {
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
        "groups": case.groups,
    }
    exact = acs_conv3d(input.double(), weight.double(), backend="torch", **options)
    allowed = 2 * relative_error(acs_conv3d(input, weight, backend="torch", **options), exact)
    out = acs_conv3d(input.to(device), weight.to(device), backend=backend, **options).cpu()
    assert relative_error(out, exact) <= max(allowed, 2 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)  # only its kernels are divided among threads
def test_result_does_not_depend_on_the_number_of_threads(backend):
    problem = Problem(16, 22, (3, 3), (13, 14, 15), (8, 7, 7), padding=1)
    input, weight = torch.randn(2, 16, 13, 14, 15), torch.randn(22, 16, 3, 3)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            outputs.append(acs_conv3d(input, weight, split=problem.split, padding=1, backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(out, outputs[0]) for out in outputs)


def test_gradient_that_a_backend_lacks_is_computed_by_torch(backend, device):
    input = torch.randn(1, 2, 4, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64, device=device, requires_grad=True)
    grads = torch.autograd.grad(
        acs_conv3d(input, weight, padding=1, backend=backend).square().sum(), (input, weight)
    )
    expected = torch.autograd.grad(
        acs_conv3d(input, weight, padding=1, backend="torch").square().sum(), (input, weight)
    )
    torch.testing.assert_close(grads, expected)


IMPORT = """
import sys, warnings
warnings.simplefilter("error")
import torch
threads, dtype, seed = torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()
state = torch.random.get_rng_state()
import acsconv_cuda, acsconv.operators, acsconv.models
acsconv_cuda.backends()
assert not torch.cuda.is_initialized()
assert (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()) == (threads, dtype, seed)
assert torch.equal(torch.random.get_rng_state(), state)
assert "numpy" not in set(sys.modules) - before_torch, "numpy imported"
assert not any(name.split(".")[0] in ("triton", "torchvision", "matplotlib") for name in sys.modules)
"""


def test_import_has_no_side_effects(tmp_path):
    code = "import torch, sys; before_torch = set(sys.modules) | {'numpy'}\n" + IMPORT
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == run.stderr == ""


def matrix_products_are_half_as_wide(monkeypatch, answer):
    # acsconv_cuda.backends is a function of the package, too.
    monkeypatch.setattr(sys.modules[choose.__module__], "_matrix_products_are_half_as_wide", lambda: answer)


@pytest.mark.parametrize(
    "weight,groups,chosen",
    [
        ((6, 4, 3, 3), 1, "cpu"),
        ((6, 2, 3, 3), 2, "cpu"),
        ((4, 1, 3, 3), 4, "cpu"),
        ((6, 4, 1, 1), 2, "torch"),
    ],
    ids=["dense", "grouped", "depthwise", "1x1"],
)
def test_choice_of_auto_on_a_cpu(monkeypatch, weight, groups, chosen):
    matrix_products_are_half_as_wide(monkeypatch, False)
    if not acsconv_cuda.is_available("cpu"):
        chosen = "torch"
    arguments = Arguments((2, 1, 1), resolve(weight[2:], 1, 0, 1), groups, "auto")
    assert choose("forward", torch.zeros(1, 4, 5, 5, 5), arguments) == chosen
    assert choose("backward_input", torch.zeros(1, weight[0], 3, 3, 3), arguments) == chosen


@pytest.mark.parametrize(
    ("channels", "stride", "size", "groups", "dtype", "fused"),
    [
        (72, 2, 32, 1, torch.float32, ["forward", "backward_weight"]),
        (72, 2, 24, 1, torch.float32, ["forward"]),
        (72, 2, 24, 1, torch.float16, ["forward"]),
        (72, 2, 12, 1, torch.float32, []),
        (72, 1, 32, 1, torch.bfloat16, []),
        (64, 1, 4, 1, torch.bfloat16, ["forward"]),
        (36, 1, 15, 1, torch.float32, []),
        (36, 1, 16, 1, torch.float32, ["forward", "backward_input"]),
        (97, 1, 16, 1, torch.float32, ["forward"]),
        (32, 1, 4, 1, torch.float32, ["forward"]),
        (32, 2, 32, 2, torch.float32, []),
        (32, 2, 32, 1, torch.float64, []),
    ],
)
def test_choice_of_auto_for_1x1_on_a_cpu(monkeypatch, channels, stride, size, groups, dtype, fused):
    if not acsconv_cuda.is_available("cpu"):
        pytest.skip(f"no compiled part: {_loader.failure()}")
    matrix_products_are_half_as_wide(monkeypatch, False)
    assert passes_that_auto_fuses(channels, stride, size, groups, dtype) == fused


@pytest.mark.parametrize(
    ("dtype", "groups", "fused"),
    [
        (torch.float32, 1, list(PASSES)),
        (torch.float64, 1, list(PASSES)),
        (torch.float32, 2, []),
        (torch.bfloat16, 1, []),
    ],
)
def test_choice_of_auto_for_1x1_where_matrix_products_are_slow(monkeypatch, dtype, groups, fused):
    if not acsconv_cuda.is_available("cpu"):
        pytest.skip(f"no compiled part: {_loader.failure()}")
    matrix_products_are_half_as_wide(monkeypatch, True)
    assert passes_that_auto_fuses(72, 1, 8, groups, dtype) == fused


@pytest.mark.parametrize(
    ("processor", "capability", "half"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_where_matrix_products_are_slow(monkeypatch, processor, capability, half):
    module = sys.modules[choose.__module__]
    monkeypatch.setattr(module.torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(module.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(module.Path, "read_text", lambda self: f"vendor_id : {processor}")
    assert module._matrix_products_are_half_as_wide.__wrapped__() == half


def passes_that_auto_fuses(channels, stride, size, groups, dtype):
    split = (channels - 2, 1, 1)
    arguments = Arguments(split, resolve((1, 1), stride, 0, 1), groups, "auto")
    sizes = {"forward": size}
    found = []
    for name in PASSES:
        volume = torch.zeros(1, channels, *[sizes.get(name, size // stride)] * 3, dtype=dtype)
        if choose(name, volume, arguments) == "cpu":
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("channels", "processor", "built", "left_to_torch"),
    [
        (64, True, ("amx", "avx512"), []),
        (64, True, ("avx512",), list(PASSES)),
        (64, False, ("amx", "avx512"), []),
        (32, True, ("avx512",), []),
    ],
)
def test_choice_of_auto_for_bfloat16_on_a_cpu(monkeypatch, channels, processor, built, left_to_torch):
    if not acsconv_cuda.is_available("cpu"):
        pytest.skip(f"no compiled part: {_loader.failure()}")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: processor)
    monkeypatch.setattr(_loader, "cpu_instruction_sets", lambda: built)
    arguments = Arguments((22, 21, 21), resolve((3, 3), 1, 0, 1), 1, "auto")
    volume = torch.zeros(1, channels, 5, 5, 5, dtype=torch.bfloat16)
    assert [name for name in PASSES if choose(name, volume, arguments) == "torch"] == left_to_torch
