"""What only a GPU can show: the fused CUDA kernels against the reference, and that they are good citizens of CUDA.

The tests of tests/reference, tests/contract and tests/kernels run on the GPU too, by their `backend` fixture or in the
emulator; here is the rest. `make gpu STAGE=test` runs all of them.
"""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from acsconv.operators import ACSConv, SoftACSConv
from cases import CASES
from kernels.mma_layers import grouped_layers, mma_layers
from numerics import Problem, random_problems, relative_error
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import acsconv_cuda
from acsconv_cuda import acs_conv3d, soft_acs_conv3d
from acsconv_cuda.geometry import resolve
from acsconv_cuda.ops import Arguments

REASON = acsconv_cuda.why_unavailable("cuda")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

# Of the number formats that the tensors are computed in, the unit in the last place.
ULPS = {
    name: torch.finfo(getattr(torch, name)).eps for name in ("float64", "float32", "float16", "bfloat16")
} | {"tf32": 2**-10}
FLOOR_ULPS = 2


def use(format: str) -> torch.dtype:
    """The dtype of tensors that are computed in a number format, which is switched on."""
    torch.backends.cudnn.allow_tf32 = format == "tf32"
    return torch.float32 if format == "tf32" else getattr(torch, format)


def outputs_and_gradients(tensors, grad_output, backend, soft=False, **options):
    tensors = [t.detach().requires_grad_() for t in tensors]
    function = soft_acs_conv3d if soft else acs_conv3d
    out = function(*tensors, backend=backend, **options)
    return [out, *torch.autograd.grad(out, tensors, grad_output.to(out))]


def integer_tensors(layer, dtype: torch.dtype) -> list[torch.Tensor]:
    """Input, weight and bias on the GPU, in the layer's layout."""
    shapes = (layer.input_shape, layer.weight_shape, (layer.out_channels,))
    input, weight, bias = (torch.randint(-4, 5, shape, device="cuda").to(dtype) for shape in shapes)
    if layer.layout == "channels_last":
        input = input.contiguous(memory_format=torch.channels_last_3d)
    return [input, weight, bias]


def layer_tensors(case, dtype, channels_last=False):
    """(tensors on the GPU, options, gradient of the output) of a named layer."""
    input = torch.randn(case.batch, case.in_channels, *case.size, device="cuda", dtype=dtype)
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last_3d)
    scale = (case.in_channels // case.groups * case.kernel_size**2) ** -0.5
    weight = torch.randn(
        case.out_channels, case.in_channels // case.groups, case.kernel_size, case.kernel_size, device="cuda"
    )
    tensors = [input, (weight * scale).to(dtype)]
    if case.kind != "acs":
        tensors.append(torch.rand(case.out_channels, 3, device="cuda").softmax(-1).to(dtype))
    tensors.append(torch.randn(case.out_channels, device="cuda", dtype=dtype))
    options = {
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
        "groups": case.groups,
        "soft": case.kind != "acs",
    }
    grad_output = torch.randn(case.batch, case.out_channels, *case.output_size, device="cuda")
    return tensors, options, grad_output


@pytest.mark.parametrize("problem", random_problems(200, seed=11), ids=str)
def test_integers_bit_for_bit(problem):
    tensors = [t.cuda() for t in problem.tensors()]
    options = {name: getattr(problem, name) for name in ("split", "stride", "padding", "dilation", "groups")}
    size = problem.geometry.output_size(problem.size)
    grad_output = torch.randint(-4, 5, (2, problem.out_channels, *size)).double().cuda()
    fused = outputs_and_gradients(tensors, grad_output, "cuda", **options)
    expected = outputs_and_gradients([t.cpu() for t in tensors], grad_output.cpu(), "torch", **options)
    for one, other in zip(fused, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        *mma_layers(120, seed=12, most_products=1e9),
        *mma_layers(20, seed=13, most_products=1e9, kernel=(5, 5), stride=(1, 1, 1)),
        *mma_layers(20, seed=14, most_products=1e9, kernel=(7, 7), stride=(1, 1, 1)),
        *mma_layers(20, seed=15, most_products=1e9, stride=(2, 2, 2), dilation=(1, 1, 1)),
        *mma_layers(10, seed=17, most_products=1e9, kernel=(5, 5), stride=(2, 2, 2), dilation=(1, 1, 1)),
        *mma_layers(10, seed=18, most_products=1e9, kernel=(7, 7), stride=(2, 2, 2), dilation=(1, 1, 1)),
        *mma_layers(
            10, seed=16, most_products=1e9, kernel=(2, 2), stride=(2, 2, 2), dilation=(1, 1, 1)
        ),  # of which only the gradient of the weight is on tensor cores
        *grouped_layers(30, seed=19),
    ],
    ids=str,
)
def test_tensor_cores_bit_for_bit(layer, soft):
    """Sums of small integers are exact in every order, so a result is the exact one, rounded once."""
    dtype = use("tf32" if layer.dtype == "float32" else layer.dtype)
    tensors = integer_tensors(layer, dtype)
    if soft:
        factors = torch.tensor([1.0, 0.5, 2.0], device="cuda", dtype=dtype)
        tensors.insert(2, factors.expand(layer.out_channels, 3).contiguous())
    names = ("stride", "padding", "dilation", "groups") + (() if soft else ("split",))
    options = {name: getattr(layer, name) for name in names}
    grad_output = torch.randint(-4, 5, layer.output_shape, device="cuda")
    if layer.layout == "channels_last":
        grad_output = grad_output.contiguous(memory_format=torch.channels_last_3d)
    exact = outputs_and_gradients([t.double() for t in tensors], grad_output, "torch", soft, **options)
    fused = outputs_and_gradients(tensors, grad_output, "cuda", soft, **options)
    # In Soft ACS those of weight and view weights are made of the gradients of the views' kernels, rounded before.
    compared = (0, 1, 4) if soft else range(4)
    for index, (one, other) in enumerate(zip(fused, exact, strict=True)):
        if index in compared:
            torch.testing.assert_close(one, other.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("format", ["bfloat16", "tf32"])
@pytest.mark.parametrize("channels", [(16, 24), (16, 32), (48, 32), (48, 48), (64, 64)], ids=str)
def test_many_tiles_of_small_layers(channels, format, channels_last):
    """More tiles than a GPU has room for blocks, with ragged edges: blocks that stay compute several."""
    dtype = use(format)
    input = torch.randint(-4, 5, (2, channels[0], 45, 61, 67), device="cuda").to(dtype)
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randint(-4, 5, (channels[1], channels[0], 3, 3), device="cuda").to(dtype)
    fused = acs_conv3d(input, weight, padding=1, backend="cuda")
    exact = acs_conv3d(input.double(), weight.double(), padding=1, backend="torch")
    torch.testing.assert_close(fused, exact.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("channels", [3, 16])
def test_autocast_gives_float32_gradients_unrounded(channels):
    """float32 parameters beside 16-bit volumes: on CUDA cores and on tensor cores."""
    layer = ACSConv(channels, 24, 3, padding=1).cuda()
    volume = torch.randint(-2, 3, (2, channels, 12, 13, 14), device="cuda").float()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
    grad_output = torch.randint(-2, 3, (2, 24, 12, 13, 14), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        out = layer(volume)
    out.backward(grad_output.to(out.dtype))
    exact = acs_conv3d(
        volume.double(), layer.weight.double(), layer.bias.double(), padding=1, backend="torch"
    )
    weight, bias = torch.autograd.grad(exact, list(layer.parameters()), grad_output.double())
    torch.testing.assert_close(out, exact.to(out.dtype), rtol=0, atol=0)
    unit = 0 if channels == 16 else torch.finfo(torch.bfloat16).eps  # CUDA cores round to 16 bits first
    torch.testing.assert_close(layer.weight.grad, weight.float(), rtol=unit, atol=0)
    torch.testing.assert_close(layer.bias.grad, bias.float(), rtol=unit, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "format", [name for name in ULPS if name != "float64"]
)  # which nothing is more exact than
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layers(case, format, channels_last):
    """Error against float64 at most twice that of the same maths in PyTorch in the same format, floor 2 ulp."""
    dtype = use(format)
    tensors, options, grad_output = layer_tensors(case, dtype, channels_last)
    exact = outputs_and_gradients(
        [t.double() for t in tensors], grad_output.to(dtype).double(), "torch", **options
    )
    theirs = outputs_and_gradients(tensors, grad_output, "torch", **options)
    ours = outputs_and_gradients(tensors, grad_output, "cuda", **options)
    for name, one, other, truth in zip(
        ("output", "input", "weight", "third", "fourth"), ours, theirs, exact, strict=False
    ):
        allowed = max(2 * relative_error(other, truth), FLOOR_ULPS * ULPS[format])
        assert relative_error(one, truth) <= allowed, name
        assert one.stride() == other.stride() or 1 in one.shape, name


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(soft):
    input = torch.randn(1, 2, 3, 4, 3, dtype=torch.float64, device="cuda", requires_grad=True)
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64, device="cuda", requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, device="cuda", requires_grad=True)
    if soft:
        factors = torch.rand(4, 3, dtype=torch.float64, device="cuda", requires_grad=True)
        arguments, function = (input, weight, factors, bias), soft_acs_conv3d
    else:
        arguments, function = (input, weight, bias), acs_conv3d
    assert gradcheck(lambda *t: function(*t, padding=1, stride=2, backend="cuda"), arguments)
    assert gradgradcheck(
        lambda *t: function(*t, padding=1, stride=2, backend="cuda"), arguments, fast_mode=True
    )


@pytest.mark.parametrize("soft", [False, True])
def test_opcheck(soft):
    arguments = Arguments(None if soft else (2, 1, 1), resolve((3, 3), 1, 1, 1), 1, "cuda")
    input = torch.randn(1, 2, 4, 4, 4, device="cuda", requires_grad=True)
    weight = torch.randn(*((3,) if soft else ()), 4, 2, 3, 3, device="cuda", requires_grad=True)
    opcheck(getattr(torch.ops.acsconv, arguments.name), (input, weight, None, *arguments.flat()))


@pytest.mark.parametrize("format", ["float32", "tf32", "bfloat16"])
def test_deterministic(format):
    case = next(case for case in CASES if case.name == "nnunet-stage1")
    tensors, options, grad_output = layer_tensors(case, use(format))
    runs = [outputs_and_gradients(tensors, grad_output, "cuda", **options) for _ in range(10)]
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(
    "channels", [(4, 12), (128, 128)]
)  # few voxels: the longer reduction is cut into parts
@pytest.mark.parametrize("format", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("kind", [ACSConv, SoftACSConv])
def test_cuda_graph(kind, format, channels):
    dtype = use(format)
    layer = kind(*channels, 3, padding=1, device="cuda", dtype=dtype)
    static = torch.randn(1, channels[0], 8, 8, 8, device="cuda", dtype=dtype, requires_grad=True)

    def step():
        layer.zero_grad(set_to_none=False)
        out = layer(static)
        out.square().sum().backward()
        return out

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    fresh = torch.randn_like(static)
    with torch.no_grad():
        static.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    grad = layer.weight.grad.clone()
    expected = layer(fresh)
    torch.testing.assert_close(captured, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), layer.weight)[0])


def test_two_streams():
    """Work queued on a side stream waits for that stream's earlier work, not for the default stream's."""
    layer = ACSConv(8, 24, 3, padding=1, device="cuda")
    side = torch.cuda.Stream()
    source = torch.randn(1, 8, 32, 32, 32, device="cuda")
    expected = layer(source * 2)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        out = layer(source * 2)
    side.synchronize()
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("format", ["float32", "tf32", "bfloat16"])
def test_no_synchronisation(format):
    dtype = use(format)
    layer = ACSConv(16, 24, 3, padding=1, device="cuda", dtype=dtype)
    input = torch.randn(1, 16, 8, 8, 8, device="cuda", dtype=dtype, requires_grad=True)
    layer(input).sum().backward()  # first call: modules are loaded
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(input).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("format", ["float32", "tf32"])
def test_extra_memory_is_bounded(format):
    """Beyond output and gradients: packed weights and at most 64 MiB, nothing that grows with the volume."""
    layer = ACSConv(32, 32, 3, padding=1, device="cuda", dtype=use(format))
    input = torch.randn(1, 32, 96, 96, 96, device="cuda", requires_grad=True)
    grad_output = torch.randn(1, 32, 96, 96, 96, device="cuda")
    volume = input.numel() * 4
    layer(input).backward(grad_output)
    layer.zero_grad()
    input.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    layer(input).backward(grad_output)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - base <= 2 * volume + (65 << 20)


def test_more_than_2_to_the_31_elements():
    side = 660  # 8 x 660^3 = 2.3e9 elements in, the same out
    free, _ = torch.cuda.mem_get_info()
    if free < 24e9:
        pytest.skip(f"needs 24 GB of GPU memory, {free / 1e9:.0f} GB are free")
    input = torch.zeros(1, 8, side, side, side, device="cuda", dtype=torch.bfloat16)
    input[..., -4:, -4:, -4:] = torch.randn(1, 8, 4, 4, 4, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(8, 8, 3, 3, device="cuda", dtype=torch.bfloat16)
    out = acs_conv3d(input, weight, padding=1, backend="cuda")
    corner = acs_conv3d(input[..., -8:, -8:, -8:], weight, padding=1, backend="torch")
    torch.testing.assert_close(out[..., -4:, -4:, -4:], corner[..., -4:, -4:, -4:], rtol=0.02, atol=0.02)
    assert out[..., :-6, :, :].count_nonzero() == 0
    del out
    (grad,) = torch.autograd.grad(
        acs_conv3d(input, weight.requires_grad_(), padding=1, backend="cuda")[..., -4:, -4:, -4:].sum(),
        weight,
    )
    assert torch.isfinite(grad).all()
    assert grad.count_nonzero() > 0


def test_autocast_and_compile():
    layer = ACSConv(16, 24, 3, padding=1, device="cuda")
    compiled = torch.compile(layer, fullgraph=True)
    input = torch.randn(1, 16, 8, 8, 8, device="cuda")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype=dtype):
            out = layer(input)
            assert out.dtype == dtype
            torch.testing.assert_close(compiled(input), out)


def needs_tma() -> None:
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) != (9, 0):
        pytest.skip(f"the TMA kernels are for compute capability 9.0, this is {major}.{minor}")


TMA_CASES = [
    (kind, format, channels, *volume)
    for kind in ("acs", "soft")
    for format in ("bfloat16", "float16", "tf32")
    for channels in ((16, 24), (40, 48), (64, 64), (160, 96), (128, 144))  # every tile
    for volume in ((3, (5, 9, 17)), (2, (33, 40, 47)), (1, (3, 3, 3)))
]


def digest(kind, format, channels, batch, size) -> str:
    """Of a layer's output and its gradient of the input, after as many repetitions have given the same."""
    dtype = use(format)
    torch.manual_seed(0)
    layer = {"acs": ACSConv, "soft": SoftACSConv}[kind](*channels, 3, padding=1, device="cuda", dtype=dtype)
    layer.requires_grad_(False)
    input = torch.randn(batch, channels[0], *size, device="cuda", dtype=dtype)
    input = input.contiguous(memory_format=torch.channels_last_3d).requires_grad_()

    def both() -> list[torch.Tensor]:
        output = layer(input)
        return [output.detach(), *torch.autograd.grad(output, input, output.detach())]

    first = both()
    for _ in range(20):
        assert all(torch.equal(*pair) for pair in zip(both(), first, strict=True))
    data = (tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes() for tensor in first)
    return hashlib.sha256(b"".join(data)).hexdigest()


@pytest.fixture(scope="module")
def digests_by_tma() -> list[str]:
    """Of all cases, from a process of its own, since ACSCONV_TMA is read once."""
    needs_tma()
    program = "import test_cuda as t; print(*(t.digest(*case) for case in t.TMA_CASES))"
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    settings = {"ACSCONV_TMA": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("case", range(len(TMA_CASES)), ids=lambda case: "-".join(map(str, TMA_CASES[case])))
def test_tma_bit_for_bit(digests_by_tma, case):
    """Loaded by the TMA or copied by threads, the products and their order are the same; so in every repetition.

    Without ACSCONV_FORWARD_WALK=view narrow layers take another kernel both times.
    """
    assert digests_by_tma[case] == digest(*TMA_CASES[case])


def test_tma_is_taken():
    """A kernel that is never chosen would pass every comparison."""
    needs_tma()
    program = """
import torch, acsconv.operators as operators
layer = operators.ACSConv(64, 96, 3, padding=1, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
input = torch.ones(1, 64, 8, 8, 8, device="cuda", dtype=torch.bfloat16)
output = layer(input.to(memory_format=torch.channels_last_3d).requires_grad_())
output.backward(output.detach())
torch.cuda.synchronize()
"""
    settings = {"ACSCONV_TMA": "1", "ACSCONV_PRINT_PLAN": "1", "ACSCONV_FORWARD_WALK": "view"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("loaded by TMA") == 2, done.stderr


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    problem = Problem(4, 6, (3, 3), (4, 5, 6), (2, 2, 2), padding=1)
    with torch.cuda.device(0):
        out = acs_conv3d(*(t.to("cuda:1") for t in problem.tensors()), padding=1, backend="cuda")
    torch.testing.assert_close(out.cpu(), acs_conv3d(*problem.tensors(), padding=1), rtol=0, atol=0)
