"""The transposed layer as people use it, and what PyTorch expects of it. Numbers: tests/reference/test_transpose.py."""

import copy
import inspect
import pickle
import re

import pytest
import torch
from acsconv.operators import ACSConvTranspose
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from acsconv_cuda import acs_conv_transpose3d

X = torch.zeros(1, 2, 5, 5, 5)
W = torch.zeros(2, 6, 3, 3)
OPTIONS = [
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (1, 2, 1), "groups": 2},
    {"dilation": 2, "padding": 2},
]


def tensors(options, dtype=torch.float64, size=(2, 3, 3)):
    groups = options.get("groups", 1)
    shapes = ((1, 2, *size), (2, 4, 3, 3), (4 * groups,))
    return tuple(torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes)


def test_signature_is_that_of_the_2d_layer():
    names = list(inspect.signature(nn.ConvTranspose2d).parameters)
    assert list(inspect.signature(ACSConvTranspose).parameters) == [*names, "acs_kernel_split"]
    layer = ACSConvTranspose(4, 6, 3, 2, 1, 1, 2, False, 1, "zeros", None, torch.float64, (1, 2, 3))
    assert (layer.stride, layer.padding, layer.output_padding, layer.groups) == (
        (2,) * 3,
        (1,) * 3,
        (1,) * 3,
        2,
    )
    assert layer.bias is None
    assert layer.weight.shape == (4, 3, 3, 3)
    assert layer.acs_kernel_split == (1, 2, 3)
    assert repr(layer) == (
        "ACSConvTranspose(4, 6, kernel_size=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), output_padding=(1, 1, 1), "
        "groups=2, bias=False, acs_kernel_split=(1, 2, 3))"
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_state_dict_and_initialisation_are_those_of_the_2d_layer(groups):
    torch.manual_seed(7)
    conv2d = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    torch.manual_seed(7)
    layer = ACSConvTranspose(4, 6, 3, groups=groups)
    assert layer.state_dict().keys() == conv2d.state_dict().keys()
    for key, value in conv2d.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)
    layer.load_state_dict(nn.ConvTranspose2d(4, 6, 3, groups=groups).state_dict())


@pytest.mark.parametrize(
    "options", [{"kernel_size": 2, "stride": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}], ids=str
)
@pytest.mark.parametrize("extra", [0, 1])
def test_sizes_are_those_of_conv_transpose3d(options, extra):
    layer, dense = ACSConvTranspose(2, 6, **options), nn.ConvTranspose3d(2, 6, **options)
    volume = torch.randn(2, 2, 3, 4, 5)
    size = [s + extra for s in dense(volume).shape[2:]]
    assert layer(volume, size).shape == dense(volume, size).shape
    assert layer(volume, output_size=[2, 6, *size]).shape == dense(volume, size).shape
    assert layer(volume[0], size).shape == dense(volume[0], size).shape
    layer.output_padding = (extra,) * 3
    assert torch.equal(layer(volume), layer(volume, size))


def test_empty_batches():
    for size in ((4, 5, 6), (0, 5, 6)):
        volume = torch.zeros(0, 2, *size, requires_grad=True)
        dense = nn.ConvTranspose3d(2, 6, 3)(volume)
        out = ACSConvTranspose(2, 6, 3)(volume)
        assert out.shape == dense.shape
        out.sum().backward()
        assert volume.grad.shape == volume.shape


def test_copies_and_devices():
    layer = ACSConvTranspose(2, 6, 2, stride=2, dtype=torch.float64)
    volume = torch.randn(1, 2, 3, 4, 5).double()
    expected = layer(volume)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(volume), expected)
    assert layer.to("meta")(volume.to("meta")).shape == expected.shape
    last = ACSConvTranspose(4, 6, 2, stride=2).to(memory_format=torch.channels_last_3d)
    volume = torch.randn(1, 4, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    assert last(volume).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients(options):
    inputs = tensors(options)
    assert gradcheck(lambda *t: acs_conv_transpose3d(*t, **options), inputs, check_forward_ad=True)
    assert gradgradcheck(lambda *t: acs_conv_transpose3d(*t, **options), inputs, fast_mode=True)


@pytest.mark.parametrize("size", [(2, 3, 4), (1, 3, 3)])
def test_autocast_is_the_layer_in_the_low_dtype(size):
    input, weight, bias = tensors({}, torch.float32, size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = acs_conv_transpose3d(input, weight, bias, stride=2)
        doubles = acs_conv_transpose3d(input.double(), weight.double(), bias.double())
    low = [t.detach().bfloat16() for t in (input, weight, bias)]
    assert out.dtype == torch.bfloat16
    assert doubles.dtype == torch.float64
    torch.testing.assert_close(out, acs_conv_transpose3d(*low, stride=2), rtol=0, atol=0)
    out.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in (input, weight, bias))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_graph_breaks(autocast):
    layer = ACSConvTranspose(4, 6, 3, stride=2, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((3, 4, 5), (4, 5, 3)):
        volume = torch.randn(2, 4, *size)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            torch.testing.assert_close(compiled(volume), layer(volume))


def test_vmap():
    input, weight, bias = (torch.randn(s) for s in ((3, 1, 2, 2, 3, 3), (2, 4, 3, 3), (4,)))
    expected = torch.stack([acs_conv_transpose3d(one, weight, bias, stride=2) for one in input])
    mapped = torch.vmap(lambda x: acs_conv_transpose3d(x, weight, bias, stride=2))(input)
    torch.testing.assert_close(mapped, expected)


ERRORS = [
    (lambda: acs_conv_transpose3d([1.0], W), TypeError, "input: expected a torch.Tensor, got list"),
    (
        lambda: acs_conv_transpose3d(X, W[None]),
        ValueError,
        "weight: expected [C_in, C_out / groups, K_h, K_w], got 5 dimensions",
    ),
    (lambda: acs_conv_transpose3d(X[:, :1], W), ValueError, "input: expected 2 channels"),
    (lambda: acs_conv_transpose3d(X, W, torch.zeros(5)), ValueError, "bias: expected shape [6], got [5]"),
    (
        lambda: acs_conv_transpose3d(X, W, torch.zeros(6), groups=2),
        ValueError,
        "bias: expected shape [12], got [6]",
    ),
    (
        lambda: acs_conv_transpose3d(X, W, groups=4),
        ValueError,
        "groups: 4 does not divide the weight's 2 input channels",
    ),
    (
        lambda: acs_conv_transpose3d(X, W, split=(2, 2, 1)),
        ValueError,
        "split: (2, 2, 1) adds up to 5, but out_channels is 6",
    ),
    (
        lambda: acs_conv_transpose3d(X, W, padding="same"),
        ValueError,
        "padding: expected ints for a transposed convolution, got 'same'",
    ),
    (
        lambda: acs_conv_transpose3d(X, W, stride=2, output_padding=(0, 1, 2)),
        ValueError,
        "output_padding: expected less than the stride or the dilation, at most 1 along W, got (0, 1, 2)",
    ),
    (
        lambda: acs_conv_transpose3d(X, W, output_padding=-1),
        ValueError,
        "output_padding: expected 0 or more on every axis, got (-1, -1, -1)",
    ),
    (
        lambda: acs_conv_transpose3d(X, torch.zeros(2, 6, 3, 5)),
        ValueError,
        "padding: the views would differ in output size along H",
    ),
    (
        lambda: acs_conv_transpose3d(X[:, :, :1], W, padding=2),
        ValueError,
        "input: size 1 along D is too small; kernel (3, 3) with this stride, padding and dilation would make it -1",
    ),
    (lambda: acs_conv_transpose3d(X[..., :0], W), ValueError, "input: size 0 along W is too small"),
    (
        lambda: acs_conv_transpose3d(X, W.double()),
        TypeError,
        "weight: expected the input's dtype torch.float32, got torch.float64",
    ),
    (
        lambda: acs_conv_transpose3d(X, W, backend="cpu"),
        RuntimeError,
        "backend='cpu' cannot compute this: transposed ACS convolution is for 'torch' only",
    ),
    (lambda: acs_conv_transpose3d(X, W, backend="gpu"), ValueError, "backend: expected 'auto'"),
    (
        lambda: ACSConvTranspose(2, 6, 3, padding_mode="reflect"),
        ValueError,
        "padding_mode: expected 'zeros' for a transposed layer, got 'reflect'",
    ),
    (
        lambda: ACSConvTranspose(2, 6, 3, acs_kernel_split=(1, 1, 1)),
        ValueError,
        "acs_kernel_split: (1, 1, 1) adds up to 3",
    ),
    (lambda: ACSConvTranspose(2, 6, 3, output_padding=1), ValueError, "output_padding: expected less than"),
    (
        lambda: ACSConvTranspose(2, 6, 2, stride=2)(X, (10, 12, 10)),
        ValueError,
        "output_size: expected 10 to 11 along H, got 12",
    ),
    (
        lambda: ACSConvTranspose(2, 6, 2, stride=2)(X, (10, 10)),
        ValueError,
        "output_size: expected (D, H, W), got (10, 10)",
    ),
]


@pytest.mark.parametrize("call,error,text", ERRORS, ids=[text[:60] for _, _, text in ERRORS])
def test_error(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()
