"""Converters: what a converted network computes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from acsconv.converters import (
    Conv2_5dConverter,
    Conv3dConverter,
    SoftACSConverter,
    convert,
)
from acsconv.operators import ACSConv, ACSConvTranspose, SoftACSConv
from library.small_networks import Call, volume_of
from numerics import relative_error
from torch import nn


def by_hand(net, x):
    """The network as ACS, written out with layers for volumes."""

    def acs(conv, x):
        square = conv.kernel_size[0] == conv.kernel_size[1]
        layer = ACSConv(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=(conv.stride[0],) * 3,
            padding=conv.padding[0] if square else conv.padding,
            groups=conv.groups,
            bias=conv.bias is not None,
            dtype=x.dtype,
        )
        layer.load_state_dict(conv.state_dict())
        return layer(x)

    def norm(bn, x):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    x = F.relu(norm(net.stem[1], acs(net.stem[0], x)))
    y = F.max_pool3d(x, 3, 2, 1)
    z = F.relu(norm(net.block.norm, acs(net.block.depthwise, y)))
    scale = acs(net.block.excite, F.relu(acs(net.block.squeeze, z.mean((2, 3, 4), keepdim=True))))
    y = acs(net.wide, y + z * scale.sigmoid())
    up = ACSConvTranspose(6, 6, 2, stride=2, dtype=x.dtype)
    up.load_state_dict(net.up.state_dict())
    y = F.interpolate(up(y), size=x.shape[2:], mode="trilinear", align_corners=False)
    return net.fc(torch.cat([x, y], 1).mean((2, 3, 4)))


def test_acs_is_the_network_written_out_by_hand(net, volume):
    assert relative_error(convert(net)(volume), by_hand(net, volume)) < 1e-12


def test_axial_features_of_the_first_layer_are_the_2d_ones(net):
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    features = convert(net).stem[0](volume_of(image, 16))
    axial = features.shape[1] // 3
    expected = net.stem[0](image)[:, :axial]
    assert relative_error(features[:, :axial], expected.unsqueeze(2).expand(-1, -1, 8, -1, -1)) < 1e-12


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_2_5d_reproduces_the_2d_network(net, axis):
    image = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    expected = net(image)
    another = net(torch.randn(2, 3, 32, 48, dtype=torch.float64))
    out = Conv2_5dConverter(copy.deepcopy(net), unsqueeze_axis=axis)(volume_of(image, 32, 5 + axis))
    assert relative_error(another, expected) > 1e-2
    assert relative_error(out, expected) < 1e-12


def test_i3d_reproduces_the_2d_network_where_padding_does_not_reach(net):
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    expected = net.forward_features(image)
    features = Conv3dConverter(copy.deepcopy(net), i3d_repeat_axis=-3).forward_features(volume_of(image, 96))
    middle = features[:, :, features.shape[2] // 2]
    first, second = middle[:, :6], middle[:, 6:]
    assert relative_error(first, expected[:, :6]) < 1e-12
    # squeeze-and-excitation sees the border of the whole volume, through its mean
    assert relative_error(second, expected[:, 6:]) < 0.1


@pytest.mark.parametrize("axis", [-3, -2, -1])
@pytest.mark.parametrize("arguments", [(3, 1, 1), (3, 2, 1), (5, 2, 2), (2, 2, 0), (1, 1, 0)])
def test_i3d_layers_reproduce_the_2d_layer_inside(arguments, axis):
    image = torch.randn(1, 3, 20, 20, dtype=torch.float64)
    conv = nn.Conv2d(3, 4, *arguments).double()
    out = convert(conv, "3d", i3d_repeat_axis=axis)(volume_of(image, 20, 5 + axis))
    middle = out.movedim(axis, 2)[:, :, out.shape[axis] // 2]
    assert relative_error(middle, conv(image)) < 1e-12


@pytest.mark.parametrize("arguments", [(2, 2, 0), (4, 2, 1), (3, 2, 1, 1), (3, 1, 1), (3, 3, 0)])
def test_i3d_transposed_layers_reproduce_the_2d_layer_inside(arguments):
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    conv = nn.ConvTranspose2d(3, 4, *arguments).double()
    out = convert(conv, "3d")(volume_of(image, 9))
    middle = out[:, :, out.shape[2] // 2 - 1 : out.shape[2] // 2 + 2]
    assert relative_error(middle, conv(image).unsqueeze(2).expand_as(middle)) < 1e-12


def test_new_3d_weights_without_i3d(net, volume):
    converted = Conv3dConverter(copy.deepcopy(net))
    assert converted.stem[0].weight.shape == (6, 3, 7, 7, 7)
    assert converted.stem[0].weight.std() > 0
    assert converted(volume).shape == (2, 4)


def test_soft_starts_with_random_views_and_mean_with_a_third(net, volume):
    soft = SoftACSConverter(copy.deepcopy(net))
    mean = SoftACSConverter(copy.deepcopy(net), mean=True)
    assert soft.stem[0].soft_w_core.shape == (6, 3)
    with torch.no_grad():
        for module in soft.modules():
            if isinstance(module, SoftACSConv):
                module.soft_w_core.zero_()
    assert relative_error(soft(volume), mean(volume)) < 1e-12


SPATIAL = {
    "interpolate by factor": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "interpolate to a shape": lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:], mode="nearest"),
    "interpolate to computed sizes": lambda x: F.interpolate(x, size=[2 * s for s in x.shape[2:]]),
    "interpolate bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "interpolate bicubic by a broken factor": lambda x: F.interpolate(x, scale_factor=1.3, mode="bicubic"),
    "interpolate bicubic to a size": lambda x: F.interpolate(F.max_pool2d(x, 2), x.shape[2:], mode="bicubic"),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool, ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max pool of a strip": lambda x: F.max_pool2d(x, (1, 3), (1, 2), (0, 1)),
    "average pool": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "average pool of the whole map": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "average pool of a map below the kernel": lambda x: F.avg_pool2d(F.adaptive_avg_pool2d(x, 2), 3, 1, 1),
    "lp pool": lambda x: F.lp_pool2d(x.abs() + 1, 2, 2),
    "max pool and unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "adaptive average pool": lambda x: F.adaptive_avg_pool2d(x, 4),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, (4, 2)),
    "adaptive pool, flattened": lambda x: F.adaptive_avg_pool2d(x, (2, 4)).flatten(1),
    "adaptive pool, viewed": lambda x: F.adaptive_avg_pool2d(x, 4).view(x.size(0), -1),
    "pad": lambda x: F.pad(x, (1, 2, 3, 0), value=2.0),
    "pad, reflecting": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pad to another map": lambda x: (
        F.pad(
            x[:, :, 1:-1, 1:-1],
            (1, x.size(3) - x[:, :, 1:-1, 1:-1].size(3) - 1, 1, x.size(2) - x[:, :, 1:-1].size(2) - 1),
        )
        + 0 * x
    ),
    "crop": lambda x: F.interpolate(x, scale_factor=2)[:, :, : x.shape[2], : x.shape[3]],
    "crop, then steps": lambda x: x[:, :, 1:, 1:][..., ::2, ::2],
    "pixel shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "mean over space": lambda x: x.mean((2, 3)),
    "mean over space, kept": lambda x: x * x.mean(dim=[-1, -2], keepdim=True),
    "tokens": lambda x: (lambda t: (t.softmax(1) * t).sum(1))(x.flatten(2).transpose(1, 2)),
    "channels last": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2),
    "channel shuffle": lambda x: (
        x.view(x.size(0), 2, 3, x.size(2), x.size(3)).transpose(1, 2).reshape(x.shape)
    ),
    "unpacked shape": lambda x: (lambda b, c, h, w: x.reshape(b, c, h * w).mean(2))(*x.shape),
    "convolution with a fixed kernel": lambda x: F.conv2d(
        x, torch.ones(6, 1, 3, 3, dtype=x.dtype) / 9, stride=2, padding=1, groups=6
    ),
    "transposed convolution": lambda x: F.conv_transpose2d(
        x, torch.linspace(-1, 1, 6 * 4 * 16, dtype=x.dtype).view(6, 4, 4, 4), stride=2, padding=1
    ),
    "normalisation": lambda x: F.group_norm(F.instance_norm(x), 2),
}


@pytest.mark.parametrize("name", SPATIAL)
def test_functions_of_the_network_in_2_5d(name):
    function = SPATIAL[name]
    image = torch.randn(2, 6, 16, 16, dtype=torch.float64)
    expected = function(image)
    out = convert(Call(function), "2.5d")(volume_of(image, 16))
    if out.dim() == 5:
        expected = expected.unsqueeze(2).expand_as(out)
    assert relative_error(out, expected) < 1e-12


@pytest.mark.parametrize("name", SPATIAL)
def test_functions_of_the_network_in_volumes(name):
    """A volume as large along the depth as along the height gets maps as deep as high; only flat outputs may differ."""
    image = torch.randn(2, 6, 16, 16, dtype=torch.float64)
    flat = SPATIAL[name](image)
    out = convert(Call(SPATIAL[name]))(torch.randn(2, 6, 16, 16, 16, dtype=torch.float64))
    expected = (*flat.shape[:2], flat.shape[2], *flat.shape[2:]) if flat.dim() == 4 else flat.shape
    assert out.shape == expected


def test_functions_agree_with_their_3d_counterparts():
    volume = torch.randn(2, 6, 8, 12, 16, dtype=torch.float64)
    for two, three in (
        (lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool3d(x, 3, 2, 1)),
        (lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: F.avg_pool3d(x, 3, 2, 1)),
        (lambda x: F.adaptive_avg_pool2d(x, 4), lambda x: F.adaptive_avg_pool3d(x, 4)),
        (
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"),
        ),
        (lambda x: F.pad(x, (1, 1, 2, 2)), lambda x: F.pad(x, (1, 1, 2, 2, 2, 2))),
        (lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3, 4))),
        (lambda x: F.instance_norm(x), lambda x: F.instance_norm(x)),
        (
            lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
            lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2),
        ),
    ):
        assert torch.equal(convert(Call(two))(volume), three(volume))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(6, 6, 3, padding="same", dilation=2),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 9, 3, padding=1, groups=3),
        nn.Conv2d(6, 6, 4, stride=2, padding=1),
        nn.Conv2d(6, 6, (7, 1), padding=(3, 0)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3, padding=1)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 3, padding=1)).eval(),
        nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.LPPool2d(2, 2),
        nn.AdaptiveMaxPool2d(4),
        nn.InstanceNorm2d(6, affine=True),
        nn.GroupNorm(2, 6),
        nn.ReflectionPad2d((1, 2, 3, 1)),
        nn.ZeroPad2d(1),
        nn.CircularPad2d(2),
        nn.Dropout2d(0.5).eval(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.UpsamplingNearest2d(scale_factor=2),
        nn.Sequential(nn.Conv2d(6, 8, 1), nn.PixelShuffle(2)),
        nn.PixelUnshuffle(2),
        nn.ChannelShuffle(2),
        nn.LocalResponseNorm(3),
        nn.Softmax2d(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modules(module):
    module = copy.deepcopy(module).double()
    image = torch.rand(2, 6, 16, 16, dtype=torch.float64)
    expected = module(image)
    out = convert(module, "2.5d")(volume_of(image, 16))
    assert relative_error(out, expected.unsqueeze(2).expand_as(out)) < 1e-10
    for to in ("acs", "soft", "3d"):
        out = convert(module, to)(torch.rand(2, 6, 16, 16, 16, dtype=torch.float64))
        assert out.shape == (*expected.shape[:2], expected.shape[2], *expected.shape[2:])


@pytest.mark.parametrize("inplace", [False, True])
def test_pooling_before_a_linear_has_one_slice(inplace):
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d((4, 3)),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(60, 2),
    ).double()
    converted = convert(net).eval()
    volume = torch.randn(2, 3, 7, 12, 9, dtype=torch.float64)
    assert converted[2].output_size == (1, 4, 3)
    features = F.adaptive_avg_pool3d(F.relu(converted[0](volume)), (1, 4, 3))
    assert relative_error(converted(volume), net[5](features.flatten(1))) < 1e-12


def test_square_pooling_before_a_linear():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(20, 2))
    converted = convert(net)
    assert converted[1].output_size == (1, 2, 2)
    assert converted(torch.randn(2, 3, 4, 8, 6)).shape == (2, 2)


def test_pooling_before_a_linear_that_sizes_do_not_show():
    net = nn.Sequential(
        nn.AdaptiveAvgPool2d((2, 3)), nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(30, 2)
    )
    volume = torch.randn(2, 3, 4, 8, 6)
    converted = convert(net)
    features = converted[1](F.adaptive_avg_pool3d(volume, (2, 2, 3))).relu().mean(2)
    assert relative_error(converted(volume).detach(), net[4](features.flatten(1)).detach()) < 1e-5
