"""The layers as people use them: signatures, attributes, repr, checkpoints, copies. Numbers: tests/reference."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from acsconv.models import ACSUNet
from acsconv.operators import ACSConv, ACSConvTranspose, Conv2_5d, SoftACSConv
from acsconv.operators.base_acsconv import _ACSConv
from acsconv.operators.functional import acs_conv_f, conv3D_output_shape_f
from torch import nn

LAYERS = {
    "acs": lambda: ACSConv(2, 6, 3, padding=1),
    "soft": lambda: SoftACSConv(2, 6, 3, padding=1),
    "mean": lambda: SoftACSConv(2, 6, 3, padding=1, mean=True),
    "2.5d": lambda: Conv2_5d(2, 6, 3, padding=1),
    "transposed": lambda: ACSConvTranspose(2, 6, 3, padding=1),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


SIGNATURES = {
    ACSConv: "in_channels out_channels kernel_size stride padding dilation groups acs_kernel_split bias padding_mode",
    SoftACSConv: "in_channels out_channels kernel_size stride padding dilation groups mean bias padding_mode",
    Conv2_5d: "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode unsqueeze_axis",
}


@pytest.mark.parametrize("kind", SIGNATURES, ids=lambda kind: kind.__name__)
def test_signature_begins_as_in_0_1_1(kind):
    names = list(inspect.signature(kind).parameters)
    assert names == [*SIGNATURES[kind].split(), "device", "dtype"]


def test_arguments_by_position():
    layer = ACSConv(4, 6, 3, 2, 1, 1, 2, (1, 2, 3), False, "zeros")
    assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((2, 2, 2), (1, 1, 1), (1, 1, 1), 2)
    assert layer.acs_kernel_split == (1, 2, 3)
    assert layer.bias is None
    assert layer.weight.shape == (6, 2, 3, 3)
    assert SoftACSConv(4, 6, 3, 1, 0, 1, 1, True).mean


@pytest.mark.parametrize(
    "arguments,kernel_size,padding",
    [
        ({"kernel_size": 3}, (3, 3, 3), (0, 0, 0)),
        ({"kernel_size": (3, 3), "padding": (1, 1)}, (3, 3, 3), (1, 1, 1)),
        ({"kernel_size": [5, 5, 5], "padding": [2, 2, 2]}, (5, 5, 5), (2, 2, 2)),
        ({"kernel_size": 3, "padding": (1, 0, 1)}, (3, 3, 3), (1, 0, 1)),
        ({"kernel_size": (1, 7), "padding": (0, 3)}, (1, 7), (0, 3)),
        ({"kernel_size": (3, 5), "padding": "same"}, (3, 5), "same"),
    ],
)
def test_geometry_attributes(arguments, kernel_size, padding):
    layer = ACSConv(2, 6, **arguments)
    assert (layer.kernel_size, layer.padding) == (kernel_size, padding)


def test_attributes_can_be_changed_afterwards():
    layer, twin = ACSConv(2, 6, 3, padding=1), ACSConv(2, 6, 3, padding=1, stride=2)
    twin.load_state_dict(layer.state_dict())
    layer.stride = (2, 2, 2)
    volume = torch.randn(1, 2, 5, 6, 7)
    torch.testing.assert_close(layer(volume), twin(volume))


def test_repr():
    assert repr(ACSConv(3, 10, 3, padding=1, groups=1, bias=False)) == (
        "ACSConv(3, 10, kernel_size=(3, 3, 3), stride=(1, 1, 1), padding=(1, 1, 1), bias=False, "
        "acs_kernel_split=(4, 3, 3))"
    )
    assert repr(SoftACSConv(2, 4, (1, 7), padding="same", padding_mode="reflect")) == (
        "SoftACSConv(2, 4, kernel_size=(1, 7), stride=(1, 1, 1), padding='same', padding_mode='reflect', mean=False)"
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [ACSConv, SoftACSConv])
def test_2d_checkpoints_load(kind, bias):
    conv2d = nn.Conv2d(4, 6, 3, groups=2, bias=bias)
    layer = kind(4, 6, 3, groups=2, bias=bias)
    missing = layer.load_state_dict(conv2d.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys == ([] if kind is ACSConv else ["soft_w_core"])
    assert torch.equal(layer.weight, conv2d.weight)


def test_acs_state_dict_is_that_of_conv2d_both_ways():
    conv2d, layer = nn.Conv2d(4, 6, 3), ACSConv(4, 6, 3)
    conv2d.load_state_dict(layer.state_dict())
    assert {k: v.shape for k, v in layer.state_dict().items()} == {
        k: v.shape for k, v in conv2d.state_dict().items()
    }


def test_initialisation_is_that_of_conv2d():
    torch.manual_seed(7)
    conv2d = nn.Conv2d(4, 6, 3)
    torch.manual_seed(7)
    layer = ACSConv(4, 6, 3)
    assert torch.equal(layer.weight, conv2d.weight)
    assert torch.equal(layer.bias, conv2d.bias)


def test_copies(layer):
    volume = torch.randn(1, 2, 4, 5, 6)
    expected = layer(volume)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for copied in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ):
        assert repr(copied) == repr(layer)
        assert torch.equal(copied(volume), expected)
    fresh = type(layer)(2, 6, 3, padding=1, **({"mean": layer.mean} if hasattr(layer, "mean") else {}))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(volume), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_device_and_dtype(dtype):
    for kind in (ACSConv, SoftACSConv, Conv2_5d):
        layer = kind(2, 6, 3, padding=1, dtype=dtype)
        assert all(p.dtype == dtype for p in layer.parameters())
        assert layer(torch.randn(1, 2, 4, 5, 6, dtype=dtype)).dtype == dtype
        meta = kind(2, 6, 3, padding=1, device="meta")
        assert meta(torch.empty(1, 2, 4, 5, 6, device="meta")).shape == (1, 6, 4, 5, 6)


@pytest.mark.parametrize("kind", [ACSConv, SoftACSConv])
def test_channels_last_by_the_usual_recipe(kind):
    layer = nn.Sequential(kind(4, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 6, 3))
    volume = torch.randn(1, 4, 5, 6, 7)
    expected = layer(volume)
    layer = layer.to(memory_format=torch.channels_last_3d)
    assert layer[0].weight.shape == (6, 4, 3, 3)
    channels_last = volume.to(memory_format=torch.channels_last_3d)
    assert layer[:2](channels_last).is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(layer(channels_last), expected)


def test_numbers_of_numpy():
    two, six, three = np.int64(2), np.int32(6), np.int64(3)
    assert repr(ACSConv(two, six, three, groups=two)) == repr(ACSConv(2, 6, 3, groups=2))
    assert repr(Conv2_5d(two, 6, three, padding=np.int64(1))) == repr(Conv2_5d(2, 6, 3, padding=1))


def test_subclass_of_the_base_as_in_0_1_1():
    layer = _ACSConv(4, 6, 3, 2, 1, 1, True, 1, 2, True, "zeros")
    assert layer.weight.shape == (4, 3, 3, 3)
    assert (layer.transposed, layer.output_padding) == (True, (1, 1, 1))
    assert "output_padding=(1, 1, 1)" in repr(layer)


def test_mean_is_a_third_of_each_view():
    layer = SoftACSConv(2, 6, 3, padding=1, mean=True).double()
    volume = torch.randn(1, 2, 4, 5, 6).double()
    views = []
    for split in ((6, 0, 0), (0, 6, 0), (0, 0, 6)):
        view = ACSConv(2, 6, 3, padding=1, acs_kernel_split=split).double()
        view.load_state_dict(layer.state_dict())
        views.append(view(volume))
    torch.testing.assert_close(layer(volume), sum(views) / 3)
    assert not hasattr(layer, "soft_w_core")


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_conv2_5d_is_a_2d_convolution_of_slices(axis):
    layer = Conv2_5d(2, 6, 3, padding=1, unsqueeze_axis=axis)
    conv2d = nn.Conv2d(2, 6, 3, padding=1)
    conv2d.load_state_dict({"weight": layer.weight.squeeze(axis), "bias": layer.bias})
    volume = torch.randn(1, 2, 4, 5, 6)
    expected = torch.stack([conv2d(one) for one in volume.unbind(axis)], axis)
    torch.testing.assert_close(layer(volume), expected)


def test_conv2_5d_honours_the_padding_mode():
    layer = Conv2_5d(2, 6, 3, padding=1, padding_mode="replicate")
    volume = torch.ones(1, 2, 4, 5, 6)
    out = layer(volume)
    torch.testing.assert_close(out, out[:, :, :1, :1, :1].expand_as(out))


def test_functional_of_0_1_1():
    layer = ACSConv(2, 6, 3, padding=1, stride=2)
    volume = torch.randn(1, 2, 4, 5, 6)
    out = acs_conv_f(
        volume,
        layer.weight,
        layer.bias,
        layer.kernel_size,
        layer.dilation,
        layer.padding,
        layer.stride,
        layer.groups,
        layer.out_channels,
        layer.acs_kernel_split,
    )
    torch.testing.assert_close(out, layer(volume))
    for axis in range(3):
        size = conv3D_output_shape_f(
            axis, volume.shape[2:], layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )
        assert size == out.shape[2 + axis]
        assert SoftACSConv(2, 6, 3, 2, 1).conv3D_output_shape_f(axis, volume.shape[2:]) == size


def test_unet_trains():
    unet = ACSUNet(2)
    optimiser = torch.optim.Adam(unet.parameters(), lr=1e-2)
    volume, target = torch.randn(2, 1, 8, 8, 8), torch.randint(0, 2, (2, 8, 8, 8))
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(unet(volume), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in unet.parameters())


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_in_place_activation_behind_a_layer(kernel_size):
    layers = nn.Sequential(ACSConv(2, 6, kernel_size, padding=kernel_size // 2), nn.ReLU(inplace=True))
    layers(torch.randn(1, 2, 4, 5, 6)).sum().backward()
    assert layers[0].weight.grad.abs().max() > 0
