"""A call like an earlier one takes a shortcut on CPUs: same results, and whatever it must not pass by it does not."""

from typing import ClassVar

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import acsconv_cuda
from acsconv_cuda import acs_conv3d, ops, shortcuts
from acsconv_cuda.geometry import resolve

X, W, B = torch.randn(2, 4, 5, 6, 7), torch.randn(7, 4, 3, 3), torch.randn(7)
POINT = torch.randn(7, 4, 1, 1)


@pytest.fixture(autouse=True)
def _known():
    """One call of either kind has been made: of a fused kernel where there is one, and of a matrix product."""
    shortcuts._known.clear()
    for weight in (W, POINT):
        acs_conv3d(X, weight, B, stride=1, padding=1)
    assert len(shortcuts._known) == 2


def _refuse(*args):
    raise AssertionError("not this way")


@pytest.fixture
def _no_long_way(monkeypatch):
    monkeypatch.setattr(ops, "convolve", _refuse)


def _seen_by(mode: type, call) -> set[str]:
    names = set()

    class Record(mode):
        def intercept(self, function, types, args=(), kwargs=None):
            names.add(str(function))
            return function(*args, **(kwargs or {}))

        __torch_dispatch__ = __torch_function__ = intercept

    with Record():
        call()
    return names


class Recorded(torch.Tensor):
    names: ClassVar[set[str]] = set()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.names.add(str(function))
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("weight", [W, POINT], ids=["3x3", "1x1"])
@pytest.mark.parametrize("bias", [B, None], ids=["bias", "no bias"])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.usefixtures("_no_long_way")
def test_results_are_those_of_the_operator(weight, bias, format):
    geometry = resolve(tuple(weight.shape[2:]), 1, 1, 1)
    input = X.contiguous(memory_format=format)
    expected = torch.ops.acsconv.acs_conv3d(
        input, weight, bias, *ops.Arguments((3, 2, 2), geometry, 1, "auto").flat()
    )
    with torch.inference_mode():
        out = acs_conv3d(input, torch.nn.Parameter(weight), bias, stride=1, padding=1)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()


@pytest.mark.parametrize("weight", [W, POINT], ids=["3x3", "1x1"])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"bias": B[:1]}, ValueError, "bias: expected shape"),
        ({"bias": B.double()}, TypeError, "bias: expected the input's dtype"),
        ({"bias": B.to("meta")}, ValueError, "bias: expected the input's device"),
        ({"weight": torch.double}, TypeError, "weight: expected the input's dtype"),
        ({"weight": "meta"}, ValueError, "weight: expected the input's device"),
        ({"stride": True}, TypeError, "stride: expected an int"),
        ({"stride": 1.0}, TypeError, "stride: expected an int"),
        ({"padding": (1, 1.0, 1)}, TypeError, "padding: expected an int"),
        ({"groups": 1.0}, TypeError, "groups: expected an int"),
        ({"padding": torch.device("cpu")}, TypeError, "padding: expected an int"),
        ({"backend": "tpu"}, ValueError, "backend: expected"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_as_ever(weight, change, error, message):
    options = {"weight": weight, "bias": B, "stride": 1, "padding": 1, **change}
    if options["weight"] is not weight:
        options["weight"] = weight.to(options["weight"])
    with pytest.raises(error, match=message):
        acs_conv3d(X, **options)


@pytest.mark.parametrize("weight", [W, POINT], ids=["3x3", "1x1"])
def test_gradients_are_those_of_the_operator(weight, monkeypatch):
    tensors = [t.clone().requires_grad_() for t in (X, weight, B)]

    def gradients():
        out = acs_conv3d(*tensors, stride=1, padding=1)
        return torch.autograd.grad(out.square().sum(), tensors)

    short = gradients()
    monkeypatch.setattr(ops, "is_plain", lambda *tensors: False)
    assert all(map(torch.equal, short, gradients()))


def test_what_inference_mode_remembers_serves_training():
    input, weight = torch.randn(1, 4, 6, 6, 6), W.clone().requires_grad_()
    with torch.inference_mode():
        expected = acs_conv3d(input, weight).clone()
    out = acs_conv3d(input, weight)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("size", [(0, 4, 4, 4), (2, 0, 4, 3), (1, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_results_have_the_strides_of_an_empty_tensor(backend, size, format):
    batch, *volume = size
    input = torch.zeros(batch, 4, 4, 4, 4).contiguous(memory_format=format)
    numbers = (3, 2, 2), (1, 1, 1), (0,) * 9, (1,) * 9
    out = torch.ops.acsconv.fused_forward(input, W, None, *numbers, volume, 1)
    memory_format = acsconv_cuda.reference.memory_format(input)
    assert out.stride() == torch.empty(batch, 7, *volume, memory_format=memory_format).stride()


@pytest.mark.parametrize("numbers", [torch.ones(27).long(), torch.ones(28), torch.ones(56).long()[::2]])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_packed_numbers_are_checked(backend, numbers):
    with pytest.raises(RuntimeError, match="numbers must be 28"):
        torch.ops.acsconv.fused_forward_packed(X, W, B, numbers)


def test_lists_are_read_anew():
    padding = [1, 1, 1]
    small = acs_conv3d(X, W, B, padding=padding)
    padding[:] = [2, 2, 2]
    assert acs_conv3d(X, W, B, padding=padding).shape[2:] == tuple(n + 2 for n in small.shape[2:])


def test_the_environment_is_read_at_every_call(monkeypatch):
    monkeypatch.setenv("ACSCONV_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="ACSCONV_BACKEND='cuda' cannot compute this"):
        acs_conv3d(X, W, B, padding=1)
    monkeypatch.setenv("ACSCONV_BACKEND", "")
    acs_conv3d(X, W, B, padding=1)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("weight", [W, POINT], ids=["3x3", "1x1"])
def test_nothing_is_passed_by(weight):
    def call(input=X, weight=weight, bias=B):
        return acs_conv3d(input, weight, bias, stride=1, padding=1)

    plain = call()
    for mode in (TorchDispatchMode, TorchFunctionMode):
        assert "acsconv.acs_conv3d.default" in _seen_by(mode, call)
    for one in ({"input": X}, {"weight": weight}, {"bias": B}):
        Recorded.names.clear()
        call(**{name: tensor.as_subclass(Recorded) for name, tensor in one.items()})
        assert "acsconv.acs_conv3d.default" in Recorded.names
    with torch.autocast("cpu", torch.bfloat16):
        assert call().dtype == torch.bfloat16
    input = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(input), input, plain)
    assert torch.allclose(gradient, torch.func.vjp(call, X)[1](plain)[0], atol=1e-4)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(X, X))).tangent
    assert torch.allclose(tangent, plain - B[:, None, None, None], atol=1e-4)
    assert "acsconv::acs_conv3d" in str(torch.jit.trace(call, X, check_trace=False).graph)
    shortcuts._known.update(dict.fromkeys(shortcuts._known, shortcuts._Known(_refuse, None)))
    assert torch.allclose(torch.func.vmap(call)(X[None])[0], plain, atol=1e-5)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(shortcuts, "_MOST", 3)
    for size in range(3, 13):
        acs_conv3d(torch.zeros(1, 4, size, size, size), W)
    assert len(shortcuts._known) <= 3
