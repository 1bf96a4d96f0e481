"""1x1 layers: the same as ``conv3d`` in float64 in every format, dtype and geometry, and no copies of volumes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from acsconv_cuda import acs_conv3d, soft_acs_conv3d

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
CHANNELS = [(4, 6), (12, 4), (1, 3), (4, 1)]
OPTIONS = [
    {},
    {"stride": 2},
    {"stride": (1, 3, 2)},
    {"groups": 2},
    {"padding": 1, "stride": 2},
    {"padding": 1, "padding_mode": "replicate"},
]


def integers(*shape, dtype=torch.float64):
    return torch.randint(-4, 5, shape).to(dtype)


def gradients(function, tensors, grad_output):
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad_output(out))


def arrives(out, how):
    """A gradient of integers as ``how`` says: in a memory format, or expanded, as that of a sum is."""
    if how == "expanded":
        return torch.full((), 3, dtype=out.dtype).expand_as(out)
    values = torch.arange(out.numel()).remainder(7).sub(3).view(out.shape).to(out.dtype)
    return values.contiguous(memory_format=FORMATS[how])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_values_and_formats(batch, options, dtype):
    groups = options.get("groups", 1)
    for (c_in, c_out), *how in itertools.product(CHANNELS, FORMATS, (*FORMATS, "expanded"), (True, False)):
        if c_in % groups == 0 and c_out % groups == 0:
            check(batch, c_in, c_out, options, dtype, *how)


def check(batch, c_in, c_out, options, dtype, format, grad_format, biased):
    def dense(input, weight, bias=None):
        weight, geometry = weight[:, :, None], dict(options)
        mode = geometry.pop("padding_mode", None)
        if mode is not None:
            input, geometry = F.pad(input, [1] * 6, mode=mode), {}
        return F.conv3d(input, weight, bias, **geometry)

    shapes = ((batch, c_in, 5, 4, 6), (c_out, c_in // options.get("groups", 1), 1, 1), (c_out,))
    exact = [integers(*shape) for shape in shapes[: 3 if biased else 2]]
    tensors = [t.to(dtype) for t in exact]
    tensors[0] = tensors[0].contiguous(memory_format=FORMATS[format])
    found = gradients(lambda *t: acs_conv3d(*t, **options), tensors, lambda out: arrives(out, grad_format))
    expected = gradients(dense, exact, lambda out: arrives(out, grad_format))
    for one, other in zip(found, expected, strict=True):
        # Sums of 32 bits are exact here; in 16 a gradient of the weight may be rounded once more for every sample.
        limit = 0 if dtype.itemsize > 2 else torch.finfo(dtype).eps * float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=limit)
        assert one.dtype == dtype
    if c_in > 1 and c_out > 1:  # a volume of one channel is in both formats
        assert all(t.is_contiguous(memory_format=FORMATS[format]) for t in found[:2])


def test_soft():
    input, weight, bias = integers(2, 4, 3, 4, 5), integers(6, 4, 1, 1), integers(6)
    factors = torch.tensor([0.5, 0.25, 0.5]).double().expand(6, 3)
    grad_output = integers(2, 6, 3, 4, 5)
    for format in FORMATS.values():
        volume = input.contiguous(memory_format=format)
        found = gradients(
            lambda x, w, b: soft_acs_conv3d(x, w, factors, b), (volume, weight, bias), lambda _: grad_output
        )
        expected = gradients(
            lambda x, w, b: F.conv3d(x, 1.25 * w[:, :, None], b), (input, weight, bias), lambda _: grad_output
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("view", [lambda x: x[:, 1:5], lambda x: x[..., 1:], lambda x: x.transpose(2, 4)])
def test_strided_inputs(view):
    weight, bias = integers(3, 4, 1, 1), integers(3)
    for base in (
        integers(2, 6, 4, 5, 6),
        integers(2, 6, 4, 5, 6).contiguous(memory_format=FORMATS["channels_last"]),
    ):
        input = view(base)[:, :4]
        found = gradients(acs_conv3d, (input, weight, bias), torch.ones_like)
        copy = input.contiguous()
        expected = gradients(
            lambda x, w, b: F.conv3d(x, w[:, :, None], b), (copy, weight, bias), torch.ones_like
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_empty_batch():
    weight = integers(6, 4, 1, 1)
    for format in FORMATS.values():
        input = torch.empty(0, 4, 5, 6, 7, dtype=torch.float64, memory_format=format)
        out, grad_input, grad_weight = gradients(acs_conv3d, (input, weight), torch.ones_like)
        assert out.shape == (0, 6, 5, 6, 7)
        assert grad_input.shape == input.shape
        assert not grad_weight.any()


def test_backward_inside_autocast_is_not_cast():
    input, weight = torch.rand(1, 4, 3, 4, 5), torch.rand(6, 4, 1, 1)

    def run(inside):
        leaves = [t.detach().requires_grad_() for t in (input, weight)]
        out = acs_conv3d(*leaves)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            return torch.autograd.grad(out.sum(), leaves)

    torch.testing.assert_close(run(True), run(False), rtol=0, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(4, 6), (6, 4)])
def test_results_may_be_changed_in_place(channels, stride):
    """Autograd refuses that for views that an operator returned."""
    for format in FORMATS.values():
        input = torch.randn(2, channels[0], 3, 4, 5).contiguous(memory_format=format).requires_grad_()
        weight = torch.randn(channels[1], channels[0], 1, 1, requires_grad=True)
        out = acs_conv3d(input, weight, stride=stride).relu_()
        for grad in torch.autograd.grad(out.square().sum(), (input, weight), create_graph=True):
            grad.mul_(2)


def allocated(function):
    """Bytes that are allocated while the function runs, those freed again included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    return sum(max(0, event.self_cpu_memory_usage) for event in record.events())


@pytest.mark.parametrize(("format", "other"), [tuple(FORMATS), tuple(FORMATS)[::-1]], ids=list(FORMATS))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_no_copy_of_a_volume(dtype, batch, stride, format, other):
    """Forward: the output, and what a stride picks out; backward: the gradient of the input, and the same of that."""
    input = torch.randn(batch, 24, 16, 18, 20).to(dtype).contiguous(memory_format=FORMATS[format])
    weight = torch.randn(20, 24, 1, 1).to(dtype).requires_grad_()
    input.requires_grad_()
    out = acs_conv3d(input, weight, stride=stride)
    picked = 0 if stride == 1 else input.nbytes // stride**3
    little = 20_000  # the weight is 2 to 4 thousand bytes
    assert allocated(lambda: acs_conv3d(input, weight, stride=stride)) <= out.nbytes + picked + little

    def backward(format):
        grad_output = torch.randn(out.shape).to(dtype).contiguous(memory_format=FORMATS[format])
        return allocated(lambda: torch.autograd.grad(out, (input, weight), grad_output, retain_graph=True))

    needed = input.nbytes + 2 * picked + little
    assert backward(format) <= needed
    assert backward(other) <= needed + out.nbytes  # brought into the input's format, once


def test_no_copy_of_a_volume_in_groups():
    """PyTorch's gradient of a convolution asks for an input, of which it then looks at the size and the format."""
    input = torch.randn(1, 24, 16, 18, 20).bfloat16().contiguous(memory_format=FORMATS["channels_last"])
    input.requires_grad_()
    out = acs_conv3d(input, torch.randn(16, 12, 1, 1).bfloat16(), groups=2)
    grad_output = torch.randn_like(out)
    assert allocated(lambda: torch.autograd.grad(out, input, grad_output)) <= 2 * input.nbytes + 20_000


@pytest.mark.parametrize("format", FORMATS)
def test_batched_gradients(format):
    """Many gradients in one pass, which do not know their format."""
    tensors = [
        torch.randn(2, 4, 4, 5, 6).double().contiguous(memory_format=FORMATS[format]),
        torch.randn(6, 4, 1, 1).double(),
        torch.randn(6).double(),
    ]
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: acs_conv3d(*t, stride=2), leaves, check_batched_grad=True)
