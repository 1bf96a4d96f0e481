"""What PyTorch expects of an operator: gradients, fake kernels, compile, autocast, vmap, torch.func."""

import copy

import pytest
import torch
from acsconv.operators import ACSConv, SoftACSConv
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from acsconv_cuda import ACSConvFunction, acs_conv3d, soft_acs_conv3d, why_unavailable
from acsconv_cuda.geometry import resolve
from acsconv_cuda.ops import Arguments

OPTIONS = [
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 0, "dilation": 2},
    {"padding": 2, "stride": (1, 2, 1)},
    {"padding": 1, "groups": 2},
    {"padding": "same", "dilation": 2},
    {"padding": 1, "padding_mode": "replicate"},
]


def tensors(options, dtype=torch.float64, device="cpu", channels=(2, 4), size=(5, 5, 5), batch=1):
    """(input, weight, bias) that require gradients."""
    groups = options.get("groups", 1)
    shapes = ((batch, channels[0], *size), (channels[1], channels[0] // groups, 3, 3), (channels[1],))
    return tuple(torch.randn(shape, dtype=dtype, device=device).requires_grad_() for shape in shapes)


def view_weights(weight):
    return torch.rand(weight.shape[0], 3, dtype=weight.dtype, device=weight.device).requires_grad_()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients(backend, device, options):
    inputs = tensors(options, device=device)
    assert gradcheck(lambda *t: acs_conv3d(*t, backend=backend, **options), inputs, fast_mode=True)
    assert gradgradcheck(lambda *t: acs_conv3d(*t, backend=backend, **options), inputs, fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_soft_gradients(options):
    input, weight, bias = tensors(options)
    inputs = (input, weight, view_weights(weight), bias)
    assert gradcheck(lambda *t: soft_acs_conv3d(*t, **options), inputs, fast_mode=True)
    assert gradgradcheck(lambda *t: soft_acs_conv3d(*t, **options), inputs, fast_mode=True)


def test_gradients_element_by_element():
    """The slow mode of gradcheck, once for each family and for the Function."""
    options = {"padding": 1}
    input, weight, bias = tensors(options, channels=(1, 3), size=(2, 3, 2))
    assert gradcheck(lambda *t: acs_conv3d(*t, **options), (input, weight, bias))
    assert gradgradcheck(lambda *t: acs_conv3d(*t, **options), (input, weight, bias))
    assert gradcheck(lambda *t: soft_acs_conv3d(*t, **options), (input, weight, view_weights(weight), bias))
    assert gradcheck(lambda *t: ACSConvFunction.apply(*t, None, 1, 1, 1, 1, "auto"), (input, weight, bias))
    assert gradgradcheck(
        lambda *t: ACSConvFunction.apply(*t, None, 1, 1, 1, 1, "auto"), (input, weight, bias)
    )


@pytest.mark.parametrize("soft", [False, True])
def test_gradients_are_in_the_format_of_what_they_belong_to(soft):
    for format in (torch.contiguous_format, torch.channels_last_3d):
        input = torch.randn(2, 4, 5, 6, 7).contiguous(memory_format=format).requires_grad_()
        layer = SoftACSConv(4, 6, 3, padding=1) if soft else ACSConv(4, 6, 3, padding=1)
        out = layer(input)
        (grad,) = torch.autograd.grad(out.square().sum(), input, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), input)
        for tensor in (out, grad, second):
            assert tensor.is_contiguous(memory_format=format)
        # Through the gradient of the weight alone.
        (grad_weight,) = torch.autograd.grad(layer(input).sum(), layer.weight, create_graph=True)
        (second,) = torch.autograd.grad(grad_weight.square().sum(), input)
        assert second.is_contiguous(memory_format=format)


@pytest.mark.parametrize("unbatched", [False, True])
def test_function_equals_the_operator(unbatched):
    input, weight, bias = tensors({"padding": 1})
    input = input[0].detach().requires_grad_() if unbatched else input
    expected = acs_conv3d(input, weight, bias, split=(1, 1, 2), stride=2, padding=1)
    out = ACSConvFunction.apply(input, weight, bias, (1, 1, 2), 2, 1, 1, 1, "torch")
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad(out.square().sum(), (input, weight, bias))
    expected_grads = torch.autograd.grad(expected.square().sum(), (input, weight, bias))
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_only_what_is_asked_for(wanted, monkeypatch):
    """Frozen tensors are neither differentiated nor kept."""
    from acsconv_cuda import reference

    called = []
    for name in ("backward_input", "backward_weight"):
        function = getattr(reference, name)
        monkeypatch.setattr(reference, name, lambda *a, f=function, n=name: (called.append(n), f(*a))[1])
    all_tensors = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors({}))]
    out = acs_conv3d(*all_tensors, padding=1, backend="torch")
    kept = [t for t in out.grad_fn.saved_tensors if t is not None]
    assert len(kept) == len({0, 1} & set(wanted))
    out.sum().backward()
    assert called == [name for i, name in enumerate(("backward_input", "backward_weight")) if i in wanted]
    assert [t.grad is not None for t in all_tensors] == [i in wanted for i in range(3)]


def _arguments(options, channels=4, soft=False):
    split = None if soft else (2, 1, 1)
    geometry = resolve(
        (3, 3), options.get("stride", 1), options.get("padding", 0), options.get("dilation", 1)
    )
    assert channels == 4
    return Arguments(split, geometry, options.get("groups", 1), "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_opcheck(soft, channels_last, dtype):
    options = {"padding": 1, "stride": 2, "groups": 2}
    input, weight, bias = tensors(options, dtype)
    if channels_last:
        input = input.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    arguments = _arguments(options, soft=soft)
    if soft:
        weight = torch.randn(3, *weight.shape, dtype=dtype, requires_grad=True)
    out_size = arguments.geometry.output_size(input.shape[2:])
    grad_output = torch.randn(1, 4, *out_size, dtype=dtype, requires_grad=True)
    operators = torch.ops.acsconv
    name = arguments.name
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    opcheck(getattr(operators, name), (input, weight, bias, *arguments.flat()), **tolerances)
    opcheck(getattr(operators, name), (input, weight, None, *arguments.flat()), **tolerances)
    opcheck(
        getattr(operators, name + "_backward_input"),
        (grad_output, weight, [5, 5, 5], channels_last, *arguments.flat()),
        **tolerances,
    )
    for needs_bias, float32 in ((False, False), (True, False), (True, True)):
        opcheck(
            getattr(operators, name + "_backward_weight"),
            (grad_output, input, needs_bias, float32, *arguments.flat()),
            **tolerances,
        )


def test_schemas_do_not_need_the_compiled_part():
    for name in ("acs_conv3d", "soft_acs_conv3d"):
        for suffix in ("", "_backward_input", "_backward_weight"):
            assert hasattr(torch.ops.acsconv, name + suffix)


@pytest.mark.parametrize("soft", [False, True])
def test_compile_has_no_graph_break_and_does_not_recompile(soft):
    layer = SoftACSConv(2, 4, 3, padding=1) if soft else ACSConv(2, 4, 3, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            input = torch.randn(1, 2, 4, 5, 6, requires_grad=True)
            layer.zero_grad()
            out = compiled(input)
            out.square().sum().backward()
            grads = [input.grad, *(p.grad.clone() for p in layer.parameters())]
            expected_input = input.detach().requires_grad_()
            layer.zero_grad()
            expected = layer(expected_input)
            expected.square().sum().backward()
            torch.testing.assert_close(out, expected)
            torch.testing.assert_close(grads, [expected_input.grad, *(p.grad for p in layer.parameters())])


def test_compile_with_inductor_and_dynamic_sizes():
    layer = ACSConv(2, 4, 3, padding=1)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for size in (4, 6, 7):
        input = torch.randn(1, 2, size, size + 1, size)
        torch.testing.assert_close(compiled(input), layer(input))


def test_compile_with_weights_of_several_widths():
    function = torch.compile(lambda x, w: acs_conv3d(x, w, padding=1), fullgraph=True, backend="aot_eager")
    input = torch.randn(1, 2, 4, 5, 6)
    for channels in (6, 9, 11):
        weight = torch.randn(channels, 2, 3, 3)
        torch.testing.assert_close(function(input, weight), acs_conv3d(input, weight, padding=1))


@pytest.mark.parametrize("kind", ["acs", "soft", "complex"])
def test_forward_mode(kind):
    """By the reference, as a composition of functions that know it."""
    input, weight, bias = (t.detach() for t in tensors({}))
    if kind == "complex":
        input, weight, bias = (t.to(torch.complex128) for t in (input, weight, bias))
    factors = view_weights(weight.real).detach()

    def function(x):
        if kind == "soft":
            return soft_acs_conv3d(x, weight, factors, bias, padding=1)
        return acs_conv3d(x, weight, bias, padding=1)

    tangent = torch.randn_like(input)
    expected = function(input + tangent) - function(input)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(input, tangent)
        out = torch.autograd.forward_ad.unpack_dual(function(dual))
    torch.testing.assert_close(out.tangent, expected)
    torch.testing.assert_close(torch.func.jvp(function, (input,), (tangent,))[1], expected)


def test_export():
    layer = ACSConv(2, 4, 3, padding=1).eval()
    input = torch.randn(1, 2, 4, 5, 6)
    program = torch.export.export(layer, (input,))
    torch.testing.assert_close(program.module()(input), layer(input))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["acs", "soft", "function"])
def test_autocast_follows_the_users_dtype(dtype, kind):
    input, weight, bias = tensors({}, torch.float32)
    factors = view_weights(weight)

    def run():
        if kind == "soft":
            return soft_acs_conv3d(input, weight, factors, bias, padding=1)
        if kind == "function":
            return ACSConvFunction.apply(input, weight, bias, None, 1, 1, 1, 1, "auto")
        return acs_conv3d(input, weight, bias, padding=1)

    with torch.autocast("cpu", dtype=dtype):
        out = run()
        with torch.autocast("cpu", enabled=False):
            assert run().dtype == torch.float32
    assert out.dtype == dtype
    out.float().sum().backward()
    assert input.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32
    expected = torch.autograd.grad(run().sum(), (input, weight, bias))
    for grad, full in zip((input.grad, weight.grad, bias.grad), expected, strict=True):
        torch.testing.assert_close(grad, full, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("groups", [1, 4])  # 4: depthwise
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_float32_parameters_are_not_rounded_to_16_bits(dtype, groups):
    reason = why_unavailable("cpu")
    if reason is not None:
        pytest.skip(reason)
    input, weight, bias = tensors({"groups": groups}, torch.float32, channels=(4, 4))
    grad_output = torch.randn(1, 4, 5, 5, 5).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        out = acs_conv3d(input, weight, bias, padding=1, groups=groups, backend="cpu")
        grads = torch.autograd.grad(out, (weight, bias), grad_output)
    exact = acs_conv3d(
        input.to(dtype).double(), weight.double(), bias.double(), padding=1, groups=groups, backend="torch"
    )
    expected = torch.autograd.grad(exact, (weight, bias), grad_output.double())
    for grad, full in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["AutocastCPU", "AutocastCUDA", "AutocastXPU"])
def test_autocast_is_registered_for(key):
    for name in ("acs_conv3d", "soft_acs_conv3d"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"acsconv::{name}", key)


def test_autocast_leaves_float64_alone():
    input, weight, bias = tensors({})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert acs_conv3d(input, weight, bias, padding=1).dtype == torch.float64


def test_compile_under_autocast():
    layer = ACSConv(2, 4, 3, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    input = torch.randn(1, 2, 4, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = compiled(input)
        torch.testing.assert_close(out, layer(input))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (2, None)], ids=str)
def test_vmap(in_dims):
    input = torch.randn(2, 2, 4, 4, 4).double()
    weight = torch.randn(4, 2, 3, 3).double()
    batched_input = torch.stack([input, -input, 2 * input], in_dims[0]) if in_dims[0] is not None else input
    batched_weight = (
        torch.stack([weight, 3 * weight, -weight], in_dims[1]) if in_dims[1] is not None else weight
    )
    out = torch.vmap(lambda x, w: acs_conv3d(x, w, padding=1), in_dims=in_dims)(batched_input, batched_weight)
    for i in range(3):
        x = batched_input.select(in_dims[0], i) if in_dims[0] is not None else input
        w = batched_weight.select(in_dims[1], i) if in_dims[1] is not None else weight
        torch.testing.assert_close(out[i], acs_conv3d(x, w, padding=1))


def test_vmap_over_nothing():
    input, weight = torch.randn(1, 2, 4, 5, 6), torch.randn(6, 2, 3, 3)
    assert torch.vmap(lambda x: acs_conv3d(x, weight, padding=1))(input[None][:0]).shape == (0, 1, 6, 4, 5, 6)
    with pytest.raises(ValueError, match="vmap over an empty axis"):
        torch.vmap(lambda w: acs_conv3d(input, w))(weight[None][:0])


@pytest.mark.parametrize("kind", ["acs", "soft", "function"])
def test_torch_func(kind):
    """Per-sample gradients and a Hessian, as torch.func computes them."""
    input, weight, bias = (t.detach() for t in tensors({}, size=(3, 2, 3), channels=(1, 3), batch=2))
    factors = view_weights(weight).detach()

    def loss(x, w):
        if kind == "soft":
            return soft_acs_conv3d(x, w, factors, bias, padding=1).pow(3).sum()
        if kind == "function":
            return ACSConvFunction.apply(x, w, bias, None, 1, 1, 1, 1, "auto").pow(3).sum()
        return acs_conv3d(x, w, bias, padding=1).pow(3).sum()

    gradient = torch.func.grad(loss, argnums=1)
    per_sample = torch.func.vmap(gradient, in_dims=(0, None))(input.unsqueeze(1), weight)
    for i in range(2):
        torch.testing.assert_close(per_sample[i], gradient(input[i : i + 1], weight))
    hessian = torch.func.jacrev(gradient, argnums=1)(input, weight)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda w: loss(input, w), weight))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[..., 1:, 1:, 1:],
        lambda x: x[:, ::2],
        lambda x: x.transpose(2, 4),
        lambda x: x[:1].expand(3, *x.shape[1:]),
        lambda x: x[:, :, :1].expand_as(x),
        lambda x: x.flatten()[1 : 1 + 4 * 27].view(1, 4, 3, 3, 3),
    ],
    ids=["sliced", "every-other-channel", "transposed", "expanded-batch", "expanded-depth", "unaligned"],
)
def test_strided_inputs(backend, device, view):
    base = torch.randn(2, 4, 6, 6, 6, dtype=torch.float64, device=device)
    input = view(base)
    weight = torch.randn(5, input.shape[1], 3, 3, dtype=torch.float64, device=device)
    out = acs_conv3d(input, weight, padding=1, backend=backend)
    torch.testing.assert_close(out, acs_conv3d(input.contiguous(), weight, padding=1, backend="torch"))
    assert out.is_contiguous()


def test_expanded_gradient():
    """The gradient of a sum arrives with strides of 0."""
    input, weight, bias = tensors({})
    out = acs_conv3d(input, weight, bias, padding=1)
    expected = torch.autograd.grad(out, (input, weight, bias), torch.ones_like(out), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), (input, weight, bias)), expected)


def test_non_contiguous_weight(backend, device):
    input = torch.randn(1, 3, 4, 5, 6, dtype=torch.float64, device=device)
    weight = torch.randn(3, 7, 3, 3, dtype=torch.float64, device=device).transpose(0, 1).transpose(2, 3)
    bias = torch.randn(14, dtype=torch.float64, device=device)[::2]
    out = acs_conv3d(input, weight, bias, padding=1, backend=backend)
    torch.testing.assert_close(
        out, acs_conv3d(input, weight.contiguous(), bias.contiguous(), padding=1, backend="torch")
    )


@pytest.mark.parametrize("soft", [False, True])
def test_empty_batch_like_conv3d(soft):
    layer = SoftACSConv(2, 4, 3, padding=1) if soft else ACSConv(2, 4, 3, padding=1)
    input = torch.randn(0, 2, 4, 5, 6, requires_grad=True)
    out = layer(input)
    assert out.shape == torch.nn.Conv3d(2, 4, 3, padding=1)(input).shape == (0, 4, 4, 5, 6)
    out.sum().backward()
    assert input.grad.shape == input.shape
    assert layer.weight.grad.abs().sum() == 0


def test_unbatched_like_conv3d():
    layer = ACSConv(2, 4, 3, padding=1)
    input = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(layer(input), layer(input[None])[0])


def test_deterministic_weight_gradient():
    input, weight, bias = tensors({}, torch.float32, size=(9, 10, 11), batch=2)
    runs = [
        torch.autograd.grad(acs_conv3d(input, weight, bias, padding=1).square().sum(), weight)[0]
        for _ in range(3)
    ]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_deepcopy_of_a_graph_free_layer_computes_alike():
    layer = ACSConv(2, 4, 3, padding=1)
    input = torch.randn(1, 2, 4, 5, 6)
    assert torch.equal(copy.deepcopy(layer)(input), layer(input))
