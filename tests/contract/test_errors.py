"""Bad input: one error each, which names the argument, what it got and what it needs; nothing is changed by it."""

import re

import pytest
import torch
from acsconv.models.acsunet import ACSUNet
from acsconv.operators import ACSConv, Conv2_5d, SoftACSConv
from acsconv.operators.functional import acs_conv_f

from acsconv_cuda import ACSConvFunction, acs_conv3d, soft_acs_conv3d
from acsconv_cuda.geometry import resolve
from acsconv_cuda.ops import Arguments

X = torch.zeros(1, 2, 5, 5, 5)
W = torch.zeros(6, 2, 3, 3)
B = torch.zeros(6)
A = torch.zeros(6, 3)
RECT = torch.zeros(6, 2, 3, 5)

CASES = [
    # tensors
    (lambda: acs_conv3d([1.0], W), TypeError, "input: expected a torch.Tensor, got list"),
    (lambda: acs_conv3d(X, W.numpy()), TypeError, "weight: expected a torch.Tensor, got ndarray"),
    (lambda: acs_conv3d(X, W, 0.5), TypeError, "bias: expected a torch.Tensor, got float"),
    (
        lambda: acs_conv3d(X[0, 0], W),
        ValueError,
        "input: expected [N, C_in, D, H, W] or [C_in, D, H, W], got 3 dimensions",
    ),
    (lambda: acs_conv3d(X[None], W), ValueError, "got 6 dimensions: [1, 1, 2, 5, 5, 5]"),
    (
        lambda: acs_conv3d(X, W[None]),
        ValueError,
        "weight: expected [C_out, C_in / groups, K_h, K_w], got 5 dimensions",
    ),
    (lambda: acs_conv3d(X, W[:0]), ValueError, "weight: expected no size of 0, got [0, 2, 3, 3]"),
    (lambda: acs_conv3d(X[:, :0], W[:, :0]), ValueError, "weight: expected no size of 0, got [6, 0, 3, 3]"),
    (
        lambda: acs_conv3d(X, W[:, :1]),
        ValueError,
        "input: expected 1 channels (weight [6, 1, 3, 3], groups 1), got 2",
    ),
    (lambda: acs_conv3d(X, W, B[:5]), ValueError, "bias: expected shape [6], got [5]"),
    (lambda: acs_conv3d(X, W, B[None]), ValueError, "bias: expected shape [6], got [1, 6]"),
    (
        lambda: acs_conv3d(X.long(), W.long()),
        TypeError,
        "input: expected a floating-point or complex dtype, got torch.int64",
    ),
    (
        lambda: acs_conv3d(X, W.double()),
        TypeError,
        "weight: expected the input's dtype torch.float32, got torch.float64",
    ),
    (
        lambda: acs_conv3d(X, W, B.half()),
        TypeError,
        "bias: expected the input's dtype torch.float32, got torch.float16",
    ),
    (lambda: acs_conv3d(X, W.to("meta")), ValueError, "weight: expected the input's device cpu, got meta"),
    # groups and split
    (lambda: acs_conv3d(X, W, groups=0), ValueError, "groups: expected 1 or more, got 0"),
    (lambda: acs_conv3d(X, W, groups=2.0), TypeError, "groups: expected an int, got 2.0"),
    (
        lambda: acs_conv3d(X, W, groups=4),
        ValueError,
        "groups: 4 does not divide the weight's 6 output channels",
    ),
    (lambda: acs_conv3d(X, W, groups=2), ValueError, "input: expected 4 channels"),
    (
        lambda: acs_conv3d(X, W, split=(2, 2)),
        ValueError,
        "split: expected three sizes (axial, coronal, sagittal), got (2, 2)",
    ),
    (
        lambda: acs_conv3d(X, W, split=(2, 2, 3)),
        ValueError,
        "split: (2, 2, 3) adds up to 7, but out_channels is 6",
    ),
    (
        lambda: acs_conv3d(X, W, split=(-1, 4, 3)),
        ValueError,
        "split: expected sizes of 0 or more, got (-1, 4, 3)",
    ),
    (
        lambda: acs_conv3d(X, W, split="abc"),
        TypeError,
        "split: expected an int or a tuple of ints, got 'abc'",
    ),
    (lambda: acs_conv3d(X, W, split=6), ValueError, "split: expected three sizes"),
    # geometry
    (
        lambda: acs_conv3d(X, W, stride=0),
        ValueError,
        "stride: expected 1 or more on every axis, got (0, 0, 0)",
    ),
    (lambda: acs_conv3d(X, W, stride=1.5), TypeError, "stride: expected an int or a tuple of ints, got 1.5"),
    (
        lambda: acs_conv3d(X, W, stride=(1, 2)),
        ValueError,
        "stride: expected an int or 3 of them, got 2: (1, 2)",
    ),
    (
        lambda: acs_conv3d(X, W, padding=-1),
        ValueError,
        "padding: expected 0 or more on every axis, got (-1, -1, -1)",
    ),
    (
        lambda: acs_conv3d(X, W, padding=True),
        TypeError,
        "padding: expected an int or a tuple of ints, got True",
    ),
    (
        lambda: acs_conv3d(X, W, padding="full"),
        ValueError,
        "padding: expected ints, 'same' or 'valid', got 'full'",
    ),
    (
        lambda: acs_conv3d(X, W, padding="same", stride=2),
        ValueError,
        "padding: 'same' needs stride 1, got stride (2, 2, 2)",
    ),
    (
        lambda: acs_conv3d(X, W, padding=(1, 1, 1, 1)),
        ValueError,
        "padding: expected an int or 2 or 3 of them, got 4",
    ),
    (
        lambda: acs_conv3d(X, W, padding=(1, 2)),
        ValueError,
        "padding: the views would differ in output size along H",
    ),
    (
        lambda: acs_conv3d(X, W, dilation=0),
        ValueError,
        "dilation: expected 1 or more on every axis, got (0, 0, 0)",
    ),
    (lambda: acs_conv3d(X, W, dilation=3), ValueError, "input: size 5 along D is too small"),
    (
        lambda: acs_conv3d(X[..., :2], W),
        ValueError,
        "input: size 2 along W is too small; kernel (3, 3) with this padding",
    ),
    (
        lambda: acs_conv3d(X, W[..., :0]),
        ValueError,
        "weight: expected no size of 0, got [6, 2, 3, 0]",
    ),
    (lambda: acs_conv3d(X[:, :, :0], W, padding=2), ValueError, "input: size 0 along D is too small"),
    (lambda: acs_conv3d(X[..., :0], W, padding=2), ValueError, "input: size 0 along W is too small"),
    (lambda: acs_conv3d(X, RECT, padding=1), ValueError, "must be one number there, but with kernel (3, 5)"),
    (
        lambda: acs_conv3d(X, W, padding=1, padding_mode="mirror"),
        ValueError,
        "padding_mode: expected one of 'zeros'",
    ),
    (
        lambda: acs_conv3d(X, torch.zeros(3, 2, 13, 13), padding=6, padding_mode="reflect"),
        ValueError,
        "input: size 5 along D is too small for padding 6 with padding_mode='reflect', which can pad by at most 4",
    ),
    (
        lambda: acs_conv3d(X, torch.zeros(3, 2, 13, 13), padding=6, padding_mode="circular"),
        ValueError,
        "which can pad by at most 5",
    ),
    # Soft ACS
    (lambda: soft_acs_conv3d(X, W, None), TypeError, "view_weights: expected a torch.Tensor, got NoneType"),
    (
        lambda: soft_acs_conv3d(X, W, A[:, :2]),
        ValueError,
        "view_weights: expected shape [C_out, 3] = [6, 3], got [6, 2]",
    ),
    (
        lambda: soft_acs_conv3d(X, W, A.double()),
        TypeError,
        "view_weights: expected the weight's dtype torch.float32",
    ),
    # backends
    (
        lambda: acs_conv3d(X, W, backend="gpu"),
        ValueError,
        "backend: expected 'auto', 'cuda', 'cpu' or 'torch', got 'gpu'",
    ),
    (
        lambda: acs_conv3d(X, W, backend="cuda"),
        RuntimeError,
        "backend='cuda' cannot compute this: the input is on cpu",
    ),
    (
        lambda: acs_conv3d(X.to(torch.complex64), W.to(torch.complex64), backend="cpu"),
        RuntimeError,
        "backend='cpu' cannot compute this: torch.complex64 is for 'torch' only",
    ),
    (
        lambda: ACSConvFunction.apply(X, W, None, (9, 9, 9), 1, 0, 1, 1, "auto"),
        ValueError,
        "split: (9, 9, 9) adds up to 27",
    ),
    # layers
    (lambda: ACSConv(0, 6, 3), ValueError, "in_channels: expected 1 or more, got 0"),
    (lambda: ACSConv(2, 6.0, 3), TypeError, "out_channels: expected an int, got 6.0"),
    (lambda: ACSConv(3, 6, 3, groups=2), ValueError, "in_channels: 3 is not divisible by groups=2"),
    (lambda: ACSConv(2, 3, 3, groups=2), ValueError, "out_channels: 3 is not divisible by groups=2"),
    (
        lambda: ACSConv(2, 6, (3, 3, 5)),
        ValueError,
        "kernel_size: expected an int, a pair (K_h, K_w) or three equal numbers",
    ),
    (lambda: ACSConv(2, 6, "3"), TypeError, "kernel_size: expected an int or a tuple of ints, got '3'"),
    (lambda: ACSConv(2, 6, 0), ValueError, "kernel_size: expected 1 or more on every axis, got (0, 0)"),
    (lambda: ACSConv(2, 6, 3, stride=(1, 2)), ValueError, "stride: expected an int or 3 of them, got 2"),
    (
        lambda: ACSConv(2, 6, (3, 5), padding=1),
        ValueError,
        "padding: the views would differ in output size along H",
    ),
    (lambda: ACSConv(2, 6, 3, padding="same", stride=2), ValueError, "padding: 'same' needs stride 1"),
    (lambda: ACSConv(2, 6, 3, padding_mode="mirror"), ValueError, "padding_mode: expected one of 'zeros'"),
    (
        lambda: ACSConv(2, 6, 3, acs_kernel_split=(2, 2, 1)),
        ValueError,
        "acs_kernel_split: (2, 2, 1) adds up to 5, but out_channels is 6",
    ),
    (lambda: ACSConv(2, 6, 3)(X[:, :1]), ValueError, "input: expected 2 channels"),
    (
        lambda: ACSConv(2, 6, 3).double()(X),
        TypeError,
        "weight: expected the input's dtype torch.float32, got torch.float64",
    ),
    (lambda: SoftACSConv(2, 6, 3)(X[0, 0]), ValueError, "input: expected [N, C_in, D, H, W]"),
    (lambda: Conv2_5d(2, 6, 3, unsqueeze_axis=0), ValueError, "unsqueeze_axis: expected -3, -2 or -1, got 0"),
    (lambda: Conv2_5d(2, 6, (3, 3)), TypeError, "kernel_size: expected an int, got (3, 3)"),
    (
        lambda: Conv2_5d(2, 6, 3, padding=(1, 1)),
        TypeError,
        "padding: expected an int, got (1, 1)",
    ),
    (
        lambda: acs_conv_f(X, W, None, (5, 5, 5), 1, 0, 1, 1, 6, (2, 2, 2)),
        ValueError,
        "does not go with kernel_size (5, 5, 5)",
    ),
    (
        lambda: ACSUNet(2)(torch.zeros(1, 1, 8, 8, 6)),
        ValueError,
        "x: expected [N, 1, D, H, W] with D, H, W divisible by 4",
    ),
    (lambda: ACSUNet(2)(torch.zeros(1, 3, 8, 8, 8)), ValueError, "got [1, 3, 8, 8, 8]"),
]


@pytest.mark.parametrize("call,error,text", CASES, ids=[text[:60] for _, _, text in CASES])
def test_error(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_backend_of_the_environment(monkeypatch):
    monkeypatch.setenv("ACSCONV_BACKEND", "gpu")
    with pytest.raises(ValueError, match="ACSCONV_BACKEND: expected 'auto'"):
        acs_conv3d(X, W)
    monkeypatch.setenv("ACSCONV_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="ACSCONV_BACKEND='cuda' cannot compute this: the input is on cpu"):
        acs_conv3d(X, W)
    monkeypatch.setenv("ACSCONV_BACKEND", "torch")
    assert acs_conv3d(X, W).shape == (1, 6, 3, 3, 3)
    monkeypatch.setenv("ACSCONV_BACKEND", "")
    assert acs_conv3d(X, W).shape == (1, 6, 3, 3, 3)


def test_explicit_backend_that_lacks_the_problem():
    with pytest.raises(RuntimeError, match="backend='cuda' cannot compute this: the input is on cpu"):
        soft_acs_conv3d(X, W, A, backend="cuda")


def test_bad_call_changes_nothing():
    layer = ACSConv(2, 6, 3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError):
        layer(torch.zeros(1, 3, 5, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(p.grad is None for p in layer.parameters())


def test_dtypes_that_autocast_leaves_alone_must_agree():
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(
            TypeError, match=r"weight: expected the input's dtype torch\.float32, got torch\.float64"
        ),
    ):
        acs_conv3d(X, W.double())
    with pytest.raises(TypeError, match="weight: expected the input's dtype"):
        acs_conv3d(X.to("meta"), W.double().to("meta"))


def test_the_function_and_the_operators_refuse_complex_numbers():
    text = re.escape(
        "input: expected a real floating-point dtype, got torch.complex64; acs_conv3d takes complex"
    )
    x, w = X.to(torch.complex64), W.to(torch.complex64)
    with pytest.raises(TypeError, match=text):
        ACSConvFunction.apply(x, w, None, None, 1, 0, 1, 1, "auto")
    arguments = Arguments((2, 2, 2), resolve((3, 3), 1, 0, 1), 1, "auto")
    with pytest.raises(TypeError, match=text):
        torch.ops.acsconv.acs_conv3d(x, w, None, *arguments.flat())
