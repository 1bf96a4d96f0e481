"""Converters: what a converted network keeps, what it computes, how it meets people, and what is refused.

Networks here are small and made of PyTorch alone; test_converters_zoo.py takes those of torchvision and others.
"""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from acsconv.converters import (
    ACSConverter,
    BaseConverter,
    Conv2_5dConverter,
    Conv3dConverter,
    ConversionError,
    SoftACSConverter,
    convert,
    module_rule,
    rule,
)
from acsconv.converters.fold import RULES
from acsconv.operators import ACSConv, ACSConvTranspose, Conv2_5d, SoftACSConv
from numerics import relative_error
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Depthwise and pointwise convolution with squeeze-and-excitation, as mobile networks have it."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = nn.Conv2d(channels, 2, 1)
        self.excite = nn.Conv2d(2, channels, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.act(self.norm(self.depthwise(x)))
        scale = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return x + y * scale.sigmoid()


class Net(nn.Module):
    """An encoder with a skip connection, and a head: most of what networks do with space, in a few lines."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = Block(6)
        self.wide = nn.Conv2d(6, 6, (1, 5), padding=(0, 2))
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 4)

    def forward_features(self, x):
        x = self.stem(x)
        y = self.up(self.wide(self.block(self.pool(x))))
        y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([x, y], 1)

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(self.forward_features(x)), 1))


TARGETS = ("acs", "soft", "mean", "2.5d", "3d")


def volume_of(image, depth=16, axis=2):
    """A volume that repeats an image [N, C, H, W] along one axis."""
    return image.unsqueeze(axis).repeat_interleave(depth, axis)


@pytest.fixture
def net():
    net = Net().double()
    net(torch.randn(8, 3, 32, 32, dtype=torch.float64))  # statistics that are not 0 and 1
    return net.eval()


@pytest.fixture
def volume():
    return torch.randn(2, 3, 16, 24, 32, dtype=torch.float64)


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", TARGETS)
def test_forward_and_backward(net, volume, to):
    converted = convert(net, to).train()
    out = converted(volume)
    assert out.shape == (2, 4)
    out.sum().backward()
    assert [name for name, p in converted.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("to", TARGETS)
def test_keys_and_shapes(net, to):
    before = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    after = {key: tuple(value.shape) for key, value in convert(net, to).state_dict().items()}
    extra = set(after) - set(before)
    assert extra == ({key.replace("weight", "soft_w_core") for key in CONVS} if to == "soft" else set())
    for key in before:
        if to == "2.5d" and key in CONVS:
            kernel = before[key]
            assert after[key] == (*kernel[:2], 1, *kernel[2:])
        elif to == "3d" and key in (*CONVS, "up.weight"):
            kernel = before[key]
            assert after[key] == (*kernel[:2], kernel[2], *kernel[2:])
        else:
            assert after[key] == before[key]


CONVS = tuple(
    f"{name}.weight" for name in ("stem.0", "block.depthwise", "block.squeeze", "block.excite", "wide")
)


def test_weights_modes_dtypes_and_gradients_are_kept(net):
    net.block.eval()
    net.train()
    net.block.eval()
    net.stem[0].weight.requires_grad_(False)
    net.fc.to(torch.float32)
    converted = convert(net)
    for (name, old), (other, new) in zip(
        net.state_dict(keep_vars=True).items(), converted.state_dict(keep_vars=True).items()
    ):
        assert name == other
        assert torch.equal(old, new)
        assert (old.dtype, old.requires_grad) == (new.dtype, new.requires_grad)
    assert [m.training for m in net.modules()] == [m.training for m in converted.modules()]


def test_a_copy_is_converted_unless_inplace(net):
    parameters = list(net.parameters())
    converted = convert(net)
    assert type(net.stem[0]) is nn.Conv2d
    assert converted is not net
    assert convert(net, inplace=True) is net
    assert all(a is b for a, b in zip(parameters, net.parameters()))


def test_converters_convert_in_place(net):
    assert ACSConverter(net) is net
    assert net.model is net
    assert isinstance(net, Net)
    with pytest.raises(AttributeError):
        net.no_such_attribute  # noqa: B018


def test_a_child_called_model_stays():
    outer = nn.Module()
    outer.model = nn.Conv2d(1, 3, 3)
    assert isinstance(ACSConverter(outer).model, ACSConv)


def test_layers_are_visible(net):
    kinds = {
        "acs": (ACSConv, ACSConvTranspose),
        "soft": (SoftACSConv, ACSConvTranspose),
        "2.5d": (Conv2_5d, ACSConvTranspose),
        "3d": (nn.Conv3d, nn.ConvTranspose3d),
    }
    for to, (conv, transposed) in kinds.items():
        converted = convert(net, to)
        assert isinstance(converted.stem[0], conv)
        assert isinstance(converted.up, transposed)
        assert isinstance(converted.stem[1], nn.BatchNorm3d)
        assert not any(isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) for m in converted.modules())
    text = repr(convert(net))
    assert "(0): ACSConv(3, 6, kernel_size=(7, 7, 7), stride=(2, 2, 2), padding=(3, 3, 3), bias=False" in text
    assert "MaxPool3d(kernel_size=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1)" in text
    assert "2d" not in text


def test_shared_modules_and_parameters_stay_shared():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    other = nn.Conv2d(3, 3, 3, padding=1)
    other.weight = shared.weight
    for to in TARGETS:
        converted = convert(nn.Sequential(shared, shared, other), to)
        assert converted[0] is converted[1]
        assert converted[2].weight is converted[0].weight


def test_optimizer_and_hooks_survive_conversion_in_place(net, volume):
    seen = []
    net.block.register_forward_hook(lambda module, args, out: seen.append((args[0].dim(), out.dim())))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    ACSConverter(net)
    before = net.stem[0].weight.clone()
    net(volume).sum().backward()
    optimizer.step()
    assert seen == [(5, 5)]
    assert not torch.equal(before, net.stem[0].weight)


def test_copies(net, volume):
    for to in TARGETS:
        converted = convert(net, to)
        expected = converted(volume)
        buffer = io.BytesIO()
        torch.save(converted, buffer)
        buffer.seek(0)
        for copied in (
            copy.deepcopy(converted),
            pickle.loads(pickle.dumps(converted)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(copied(volume), expected)
            assert type(copied) is type(converted)
            assert copied.model is copied


@pytest.mark.parametrize("to", TARGETS)
def test_checkpoints_load(net, volume, to):
    other = Net().double().eval()
    converted, twin = convert(net, to), convert(other, to)
    expected = converted(volume)
    assert not torch.equal(twin(volume), expected)
    twin.load_state_dict(converted.state_dict())
    assert torch.equal(twin(volume), expected)
    if to != "soft":  # the 2D network's own
        twin = convert(other, to)
        twin.load_state_dict(net.state_dict())
        assert torch.equal(twin(volume), expected)


def test_2d_checkpoints_leave_the_view_weights_alone(net):
    converted = convert(net, "soft")
    before = converted.stem[0].soft_w_core.clone()
    converted.load_state_dict(Net().double().state_dict())
    assert torch.equal(converted.stem[0].soft_w_core, before)


# --- what is computed -------------------------------------------------------------------------------------------------


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


class Call(nn.Module):
    """A network whose code is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


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


# --- how it meets people ----------------------------------------------------------------------------------------------


def test_every_hook_sees_volumes(net, volume):
    net.block.act.inplace = False  # PyTorch does not allow it beside backward hooks
    converted = convert(net)
    expected = converted(volume)
    shapes = {}
    for name, module in converted.named_modules():
        module.register_forward_hook(
            lambda module, args, out, name=name: shapes.update({name: (args[0], out)})
        )
        module.register_forward_pre_hook(lambda module, args: None)
        module.register_full_backward_hook(lambda module, *grads: None)
    out = converted(volume)
    out.sum().backward()
    assert torch.equal(out, expected)
    for name, tensors in shapes.items():
        for tensor in tensors:
            assert tensor.dim() == (2 if name == "fc" or tensor.dim() == 2 else 5), name
    assert shapes["block.squeeze"][0].shape == (2, 6, 1, 1, 1)
    assert shapes["pool"][0].shape == (2, 6, 8, 12, 16)


def test_parts_called_alone(net, volume):
    converted = convert(net)
    features = converted.forward_features(volume)
    assert features.shape == (2, 12, 8, 12, 16)
    assert converted.block(torch.randn(2, 6, 5, 6, 7, dtype=torch.float64)).shape == (2, 6, 5, 6, 7)
    encoder = nn.Sequential(converted.stem, converted.pool)
    assert torch.equal(encoder(volume), converted.pool(converted.stem(volume)))
    assert torch.equal(converted.stem[:2](volume), converted.stem[1](converted.stem[0](volume)))
    assert torch.equal(converted.fc(features.mean((2, 3, 4))), converted(volume))


def test_3d_modules_put_in_afterwards(net, volume):
    converted = convert(net)
    expected = converted(volume)
    converted.avgpool = nn.AdaptiveAvgPool3d(1)
    assert relative_error(converted(volume), expected) < 1e-12
    converted.stem[1] = nn.Sequential(nn.Conv3d(6, 6, 3, padding=1), nn.BatchNorm3d(6)).double()
    assert converted(volume).shape == (2, 4)
    converted.fc = nn.Linear(12, 9).double()
    assert copy.deepcopy(converted)(volume).shape == (2, 9)
    converted.pool = nn.MaxPool2d(2)
    with pytest.raises(RuntimeError, match=r"3D|4D|dimension"):
        converted(volume)


class Branches(nn.Module):
    """Modules that the network calls one by one, in the containers of PyTorch."""

    def __init__(self, *modules):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.named = nn.ModuleDict({"a": nn.Identity()})
        self.chain = nn.Sequential(nn.Identity())

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return self.chain(self.named["a"](x))


def _as_list(net, *modules):
    net.parts = nn.ModuleList(modules)


def _as_dict(net, *modules):
    net.named = nn.ModuleDict({"a": nn.Sequential(*modules)})


def _into_list(net, *modules):
    for place, module in enumerate(modules):
        net.parts.insert(place, module)


def _into_sequential(net, *modules):
    for place, module in enumerate(modules):
        net.chain.insert(place, module)


@pytest.mark.parametrize("put", [_as_list, _as_dict, _into_list, _into_sequential])
def test_3d_modules_put_into_containers(put):
    # A folded map of this size is a volume without a batch, too: 3 channels of 3 slices.
    volume = torch.randn(3, 3, 4, 4, 4)
    layer, pool, converted = ACSConv(3, 3, 3, padding=1), nn.AvgPool3d((2, 1, 1)), convert(Branches())
    expected = pool(layer(volume))
    put(converted, layer, pool)
    assert torch.equal(copy.deepcopy(converted)(volume), expected)


@pytest.mark.parametrize("skip", [(), "parts"])
def test_3d_modules_that_were_there(skip):
    volume = torch.randn(3, 3, 4, 4, 4)
    parts = [ACSConv(3, 3, 3, padding=1), nn.BatchNorm3d(3), nn.Conv3d(3, 3, 1), nn.MaxPool3d(2)]
    expected = nn.Sequential(*copy.deepcopy(parts))(volume)
    assert torch.equal(convert(Branches(*parts), skip=skip)(volume), expected)
    assert torch.equal(ACSConverter(copy.deepcopy(parts[0])).model(volume), parts[0](volume))


def test_3d_modules_in_code_that_speaks_5d():
    conv = nn.Conv3d(1, 1, 3, padding=1)
    net = Call(lambda x: x * conv(torch.ones(2, 1, 3, 3, 3)).mean((2, 3, 4)).sum())
    net.conv = conv
    volume = torch.randn(2, 3, 4, 4, 4)
    expected = volume * conv(torch.ones(2, 1, 3, 3, 3)).mean((2, 3, 4)).sum()
    assert torch.equal(convert(net, inplace=True)(volume), expected)


def test_synchronised_batch_norm(net):
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(convert(net))
    assert isinstance(converted.stem[1], nn.SyncBatchNorm)
    assert set(converted.state_dict()) == set(net.state_dict())
    volume = torch.randn(2, 3, 16, 24, 32, dtype=torch.float64)
    assert torch.equal(converted.eval()(volume), convert(net)(volume))


def test_images_are_refused(net):
    with pytest.raises(ValueError, match=r"expected a volume \[N, C, D, H, W\]"):
        convert(net)(torch.randn(2, 3, 32, 32, dtype=torch.float64))


def test_structures_of_outputs():
    class Out(dict):
        pass

    def outputs(x):
        return {
            "map": x,
            "list": [x, (x.flatten(2), None)],
            "own": Out(last=x.permute(0, 2, 3, 1)),
            "labels": x.argmax(1),
        }

    volume = torch.randn(2, 3, 4, 5, 6)
    out = convert(Call(outputs))(volume)
    assert torch.equal(out["map"], volume)
    assert torch.equal(out["list"][0], volume)
    assert torch.equal(out["list"][1][0], volume.flatten(2))
    assert isinstance(out["own"], Out)
    assert torch.equal(out["own"]["last"], volume.movedim(1, -1))
    assert torch.equal(out["labels"], volume.argmax(1))


def test_a_forward_of_the_instance_stays_in_the_fold(net, volume):
    original = net.block.forward
    net.block.forward = lambda x: original(x) * 2
    converted = ACSConverter(net)
    assert converted.block(torch.ones(1, 6, 4, 4, 4, dtype=torch.float64)).shape == (1, 6, 4, 4, 4)
    assert converted(volume).shape == (2, 4)


def test_a_forward_of_a_convolution_stays():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    original = net[0].forward
    net[0].forward = lambda x: original(x) * 0 + 2
    assert torch.equal(
        convert(net, inplace=True)(torch.randn(1, 3, 4, 4, 4)), torch.full((1, 4, 4, 4, 4), 2.0)
    )


def test_threads_do_not_meet(net, volume):
    converted = convert(net)
    sizes = [volume[:, :, :, :, : 16 + 4 * i] for i in range(4)]
    expected = [converted(size) for size in sizes]
    found = [None] * 4

    def run(i):
        for _ in range(5):
            found[i] = converted(sizes[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("to", ["acs", "2.5d"])
def test_activation_checkpointing(net, volume, to, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.pool = net.stem, net.block, net.pool

        def forward(self, x):
            x = self.stem(x)
            x = checkpoint(self.block, x, use_reentrant=reentrant)
            x = checkpoint(lambda y: self.pool(self.block.depthwise(y)), x, use_reentrant=reentrant)
            return x.mean((2, 3))

    plain, saved = convert(Checkpointed(), to), convert(Checkpointed(), to)
    plain.train()
    saved.train()
    out = plain(volume)
    out.square().sum().backward()
    for depth in (16, 8):  # forward passes of other sizes between
        saved(volume[:, :, :depth])
    saved.zero_grad()
    saved(volume).square().sum().backward()
    norms = ("running", "num_batches")
    for (name, a), (_, b) in zip(plain.named_parameters(), saved.named_parameters()):
        assert any(n in name for n in norms) or relative_error(b.grad, a.grad) < 1e-9, name


def test_functional_call_and_vmap_of_gradients(net, volume):
    converted = convert(net)
    parameters = {name: p.detach() * 1.1 for name, p in converted.named_parameters()}
    other = copy.deepcopy(converted)
    other.load_state_dict(parameters, strict=False)
    assert torch.equal(torch.func.functional_call(converted, parameters, (volume,)), other(volume))


def test_automatic_mixed_precision(net, volume):
    converted = convert(net.float())
    expected = converted(volume.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = converted(volume.float())
    assert out.dtype == torch.bfloat16
    assert relative_error(out, expected) < 0.1


def test_channels_last(net, volume):
    converted = convert(net)
    expected = converted(volume)
    converted = converted.to(memory_format=torch.channels_last_3d)
    last = volume.to(memory_format=torch.channels_last_3d)
    assert converted.stem[0](last).is_contiguous(memory_format=torch.channels_last_3d)
    assert relative_error(converted(last), expected) < 1e-12


def test_compile_and_export(net, volume):
    converted = convert(net.float())
    volume = volume.float()
    expected = converted(volume)
    compiled = torch.compile(converted, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(volume), expected)
    exported = torch.export.export(converted, (volume,)).module()
    torch.testing.assert_close(exported(volume), expected)
    compiled(volume).sum().backward()
    assert converted.stem[0].weight.grad is not None


# --- what is refused --------------------------------------------------------------------------------------------------


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 49, 6))


def test_one_error_names_all_and_changes_nothing():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Sequential(Positions(), nn.Unfold(2)),
        nn.LayerNorm((6, 8, 8)),
        nn.Conv2d(6, 6, (3, 1)),
        nn.LSTM(6, 6),
    )
    before = [type(module) for module in net.modules()]
    with pytest.raises(ConversionError) as error:
        ACSConverter(net)
    for part in (
        "5 parts",
        "1.0 (Positions): pos_embed [1, 49, 6]",
        "1.1 (Unfold)",
        "2 (LayerNorm)",
        "3 (Conv2d)",
        "4 (LSTM)",
    ):
        assert part in str(error.value)
    assert [type(module) for module in net.modules()] == before


@pytest.mark.parametrize(
    "wrap,message",
    [
        (lambda net: nn.DataParallel(net), "made parallel"),
        (lambda net: torch.compile(net), "compiled"),
        (lambda net: torch.jit.trace(net, torch.rand(1, 3, 8, 8)), "scripted"),
        (lambda net: convert(net), r"1 part .* the network \(Sequential\): is converted already"),
        (lambda net: nn.Sequential(nn.LazyConv2d(3, 3)), "has no size yet"),
    ],
)
def test_wrapped_networks_are_refused(wrap, message):
    with pytest.raises(ConversionError, match=f"(?s){message}"):
        ACSConverter(wrap(nn.Sequential(nn.Conv2d(3, 3, 3))))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flip(2),
        lambda x: torch.flip(x, (3,)),
        lambda x: torch.roll(x, (1, 1), (2, 3)),
        lambda x: x.roll(1, 2),
        lambda x: x.cumsum(2),
        lambda x: torch.cumsum(x, dim=-1),
        lambda x: x.softmax(2),
        lambda x: F.softmax(x, dim=-1),
        lambda x: x.mean(2),
        lambda x: x.mean(dim=(1, 3)),
        lambda x: x.amax(3, keepdim=True),
        lambda x: torch.max(x, 2)[0],
        lambda x: x.max(dim=3).values,
        lambda x: x.sum(-1),
        lambda x: x.transpose(2, 3),
        lambda x: x.mT,
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: torch.cat([x, x], 2),
        lambda x: x.chunk(2, dim=3)[0],
        lambda x: torch.split(x, 2, -1)[0],
        lambda x: x[:, :, 0],
        lambda x: x[..., 0],
        lambda x: x[:, :, 3:7],
        lambda x: x[:, None, :, 1:],
        lambda x: x.select(2, 0),
        lambda x: x.narrow(3, 0, 2),
        lambda x: torch.rot90(x, 1, (2, 3)),
        lambda x: torch.fft.fft2(x).real,
        lambda x: F.grid_sample(x, torch.zeros(x.size(0), 4, 4, 2)),
        lambda x: F.unfold(x, 3),
        lambda x: x.unfold(2, 2, 2),
        lambda x: F.interpolate(x, size=(20, 20)),
        lambda x: F.max_pool2d(x.view(x.size(0), -1, x.size(2) // 2, 2 * x.size(3)), 2),
        lambda x: x.view(x.size(0), x.size(1), x.size(2) // 2, 2, x.size(3) // 2, 2).sum((3, 5)),
        lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
        lambda x: x.unbind(2)[0],
        lambda x: x.sort(dim=2).values,
        lambda x: x.argmax(3),
        lambda x: x.std(2),
        lambda x: F.normalize(x, dim=2),
        lambda x: torch.linalg.vector_norm(x, dim=-1),
        lambda x: x @ x.transpose(-1, -2),
        lambda x: torch.matmul(x, torch.ones(x.size(-1), 2)),
        lambda x: torch.einsum("bchw,bchv->bcwv", x, x),
        lambda x: (x @ x.mT) @ x,
        lambda x: F.linear(x, torch.ones(x.size(-1), x.size(-1))),
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: x[:, :, torch.arange(x.size(2))],
        lambda x: x.prod(2),
        lambda x: x.mean(axis=2),
        lambda x: x.mean(2, True),
        lambda x: x.diff(),
        lambda x: x.sort().values,
        lambda x: F.glu(x),
        lambda x: torch.fft.rfft(x).real,
        lambda x: x.topk(2, dim=2).values,
        lambda x: x.index_select(3, torch.tensor([0, 1])),
        lambda x: x[:, :, x.shape[2] // 2 :, x.shape[3] // 2 :],
        lambda x: x[:, :, : -(x.shape[2] // 2)],
        lambda x: torch.fft.rfftn(x).real,
        lambda x: torch.fft.irfftn(x),
        lambda x: torch.fft.fftn(x, dim=(2, 3)).real,
        lambda x: torch.fft.ifftn(x).real,
        lambda x: torch.fft.hfft(x),
        lambda x: torch.fft.ihfft(x).real,
        lambda x: torch.fft.fftshift(x),
        lambda x: torch.fft.ifftshift(x),
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.log_softmax(2),
        lambda x: torch.log_softmax(x, dim=-1),
        lambda x: torch.special.log_softmax(x, 3),
        lambda x: torch.special.softmax(x, 3),
        lambda x: torch.linalg.norm(x, dim=2),
        lambda x: F.cosine_similarity(x, x, dim=2),
        lambda x: F.cosine_similarity(x, x, -1),
        lambda x: F.gumbel_softmax(x),
        lambda x: F.gumbel_softmax(x, dim=2),
        lambda x: x.quantile(0.5, dim=2),
        lambda x: torch.quantile(x, 0.5, 3),
        lambda x: torch.nanquantile(x, 0.5, 2),
        lambda x: x.aminmax(dim=2).min,
        lambda x: x.mode().values,
        lambda x: torch.mode(x, 2).values,
        lambda x: x.nanmedian(2).values,
        lambda x: torch.count_nonzero(x, 2),
        lambda x: F.rms_norm(x, x.shape[-1:]),
        lambda x: torch.take_along_dim(x, x.argsort(1), 2),
        lambda x: x.scatter(2, x.argsort(1), 0.0),
        lambda x: x.scatter_add(3, x.argsort(1) % 3, x),
        lambda x: x.clone().scatter_(2, x.argsort(1), 0.0),
        lambda x: torch.scatter_reduce(x, 2, x.argsort(1), x, "sum"),
        lambda x: x.chunk(chunks=2, dim=3)[0],
        lambda x: torch.tensor_split(x, sections=2, dim=2)[0],
        lambda x: x + torch.meshgrid(torch.arange(x.size(2)), torch.arange(x.size(3)), indexing="ij")[0],
    ],
)
def test_what_would_be_wrong_in_silence_is_refused(function):
    with pytest.raises(ConversionError):
        convert(Call(function))(torch.randn(2, 3, 8, 8, 8))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.chunk(chunks=2, dim=1)[0],
        lambda x: torch.tensor_split(x, sections=2, dim=1)[0],
        lambda x: torch.split(x, split_size_or_sections=1)[0],
        lambda x: x.log_softmax(1),
        lambda x: F.gumbel_softmax(x, dim=1).detach() * 0,
        lambda x: F.cosine_similarity(x, x + 1).unsqueeze(1),
        lambda x: x.scatter(1, x.argsort(1), 0.0),
        lambda x: x.quantile(0.5, dim=1, keepdim=True),
        lambda x: torch.linalg.norm(x, dim=1, keepdim=True),
    ],
)
def test_the_same_along_the_channels(function):
    volume = torch.randn(2, 4, 5, 6, 7)
    assert torch.equal(convert(Call(function))(volume), function(volume))


def test_a_pooling_with_padding_is_none_of_the_whole_map():
    volume = torch.randn(2, 3, 1, 3, 3)
    out = convert(Call(lambda x: F.avg_pool2d(x, 3, 1, 1)))(volume)
    expected = F.avg_pool3d(F.pad(volume, (0, 0, 0, 0, 1, 1)), 3, 1, (0, 1, 1))
    assert out.shape == volume.shape
    assert relative_error(out, expected) < 1e-6
    out = convert(Call(lambda x: F.max_pool2d(x, 3, 1, 1)))(volume)
    assert torch.equal(out, F.max_pool3d(volume, 3, 1, 1))


@pytest.fixture
def operator():
    """An operator of another package, [N, C, H, W] -> the same."""
    library = torch.library.Library("acsconv_tests", "DEF")
    library.define("rows(Tensor x) -> Tensor")
    library.impl("rows", lambda x: x.cumsum(2), "CompositeImplicitAutograd")
    yield torch.ops.acsconv_tests.rows
    library._destroy()


def test_interpolation_of_tokens_keeps_its_arguments():
    def function(x):
        tokens = x.flatten(2)
        return F.interpolate(tokens, scale_factor=1.33, mode="linear", recompute_scale_factor=True)

    volume = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(convert(Call(function))(volume), function(volume))


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_output_sizes_of_transposed_convolutions(axis):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1)

        def forward(self, x):
            y = F.max_pool2d(x, 2)
            return self.up(y, x.shape[-2:]) + self.up(y, output_size=x.size())

    net, image = Up().double(), torch.randn(1, 2, 8, 10, dtype=torch.float64)
    out = convert(net, "2.5d", unsqueeze_axis=axis)(volume_of(image, 8, 5 + axis))
    assert relative_error(out, net(image).unsqueeze(axis).expand_as(out)) < 1e-12
    for to in ("acs", "3d"):
        assert convert(net, to)(torch.randn(1, 2, 4, 8, 10, dtype=torch.float64)).shape == (1, 2, 4, 8, 10)


def test_operators_of_other_packages_are_refused(operator):
    volume = torch.randn(2, 3, 8, 8, 8)
    for function in (operator, operator.default):
        with pytest.raises(
            ConversionError, match=r"torch\.ops\.acsconv_tests\.rows.*: an operator that is none"
        ):
            convert(Call(lambda x, function=function: function(x)))(volume)
        assert torch.equal(
            convert(Call(lambda x, function=function: x + function(x.mean((2, 3), True))))(volume),
            volume + volume.mean((2, 3, 4), True),
        )
    with pytest.raises(ConversionError, match="acsconv_tests"):
        convert(Call(operator), example=(1, 3, 8, 8, 8))
    assert torch.equal(convert(Call(torch.ops.aten.relu))(volume), volume.relu())


def test_deformable_convolutions_are_refused():
    deformable = type("DeformConv2d", (nn.Module,), {})
    with pytest.raises(ConversionError, match=r"0 \(DeformConv2d\): its offsets"):
        convert(nn.Sequential(deformable()))


def test_errors_in_forward_name_the_module():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(Call(lambda x: x.flip(2))))
    with pytest.raises(ConversionError, match=r"1\.0 \(Call\): flip"):
        convert(net)(torch.randn(1, 3, 8, 8, 8))


def test_a_batch_in_the_channels_is_refused():
    def merged(x):
        batch, channels, *size = x.shape
        weight = torch.ones(batch * 3, channels, 3, 3)
        return (
            F.conv2d(x.reshape(1, batch * channels, *size), weight, groups=batch).view(batch, 3, -1).mean(2)
        )

    with pytest.raises(ConversionError, match="batch was moved"):
        convert(Call(merged))(torch.randn(2, 3, 8, 8, 8))


def test_ambiguous_sizes_are_refused():
    def clash(x):
        y = F.max_pool2d(x, 2)  # 2 x 8 x 4 folds to 16 x 4 ...
        z = F.adaptive_avg_pool2d(x, 4)  # ... and so does 4 x 4 x 4
        return F.max_pool2d(y, 2), z

    with pytest.raises(ConversionError, match="two volumes"):
        convert(Call(clash))(torch.randn(1, 1, 4, 16, 8))


def test_sizes_that_no_whole_factor_gives_are_refused():
    net = convert(Call(lambda x: F.interpolate(x, size=[n // 2 for n in x.shape[2:]])))
    assert net(torch.randn(1, 1, 6, 4, 4)).shape == (1, 1, 3, 2, 2)
    with pytest.raises(ConversionError, match=r"size \(6, 2\)"):
        net(torch.randn(1, 1, 3, 4, 4))


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        convert("resnet18")
    with pytest.raises(ValueError, match="to: expected one of 'acs'"):
        convert(nn.Conv2d(1, 1, 1), "asc")
    with pytest.raises(ValueError, match="unsqueeze_axis: expected -3, -2 or -1, got 2"):
        Conv2_5dConverter(nn.Conv2d(1, 1, 1), unsqueeze_axis=2)
    with pytest.raises(ValueError, match="i3d_repeat_axis"):
        Conv3dConverter(nn.Conv2d(1, 1, 1), i3d_repeat_axis=0)
    with pytest.raises(ValueError, match="to: expected one of 'acs'"):
        convert(nn.Conv2d(1, 1, 1), ["acs"])
    for skip in (5, [5]):
        with pytest.raises(TypeError, match=r"skip: expected paths"):
            convert(nn.Conv2d(1, 1, 1), skip=skip)
    with pytest.raises(TypeError, match="example: expected a size"):
        convert(nn.Conv2d(1, 1, 1), example=5)
    with pytest.raises(TypeError, match=r"to: <lambda> returned no torch\.nn\.Module for 0, but int"):
        convert(nn.Sequential(nn.Conv2d(1, 1, 1)), lambda conv: 5)
    with pytest.raises(ValueError, match="no module of this network is called 'head'"):
        convert(nn.Conv2d(1, 1, 1), skip="head")


# --- options ----------------------------------------------------------------------------------------------------------


def test_example_collects_failures_before_anything_is_changed():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        Call(lambda x: x.flip(2)),
        nn.Conv2d(6, 6, 3, padding=1),
        Call(lambda x: x + x.cumsum(3)),
    )
    with pytest.raises(ConversionError) as error:
        convert(net, inplace=True, example=(1, 3, 16, 16, 16))
    assert "2 parts" in str(error.value)
    assert "1 (Call): flip" in str(error.value)
    assert "3 (Call): cumsum" in str(error.value)
    assert type(net[0]) is nn.Conv2d


def test_example_passes(net, volume):
    for example in ((1, 3, 16, 16, 16), volume, (volume,), {"x": volume}):
        assert isinstance(convert(net, example=example).stem[0], ACSConv)


def test_example_reports_failures_of_any_kind(net):
    net.fc = nn.Linear(13, 4)
    with pytest.raises(ConversionError, match=r"fc \(Linear\): mat1 and mat2"):
        convert(net, example=(1, 3, 16, 16, 16))


@pytest.mark.parametrize("skip", ["block", "bl*", Block, lambda path, module: path == "block"])
def test_skip(net, volume, skip):
    class Block3d(nn.Module):
        def forward(self, x):
            assert x.shape == (2, 6, 4, 6, 8)
            return x * 2

    if skip is Block:
        skip = Block3d
    net.block = Block3d()
    converted, report = convert(net, skip=skip, report=True)
    assert converted(volume).shape == (2, 4)
    assert ("block", "Block3d", "Block3d", "skipped") in report.changes


def test_report(net):
    _, report = convert(net, report=True)
    rows = {change.path: change for change in report.changes}
    assert rows["stem.0"][1:3] == ("Conv2d", "ACSConv")
    assert rows["up"][1:3] == ("ConvTranspose2d", "ACSConvTranspose")
    assert rows["avgpool"][1:3] == ("AdaptiveAvgPool2d", "AdaptiveAvgPool3d")
    assert str(report).splitlines()[2].split() == ["stem.0", "Conv2d", "ACSConv"]


def test_rules_of_ones_own():
    net = Call(lambda x: x.flip(2, -1))
    held = RULES[torch.Tensor.flip]
    try:

        @rule(torch.Tensor.flip)
        def flip(volume, function, input, *dims):
            dims = [d % 4 + (d % 4 > 1) for d in dims]
            return volume.fold(function(volume.unfold(input, "flip"), dims))

        volume = torch.randn(1, 2, 3, 4, 5)
        assert torch.equal(convert(net)(volume), volume.flip(3, 4))
    finally:
        RULES[torch.Tensor.flip] = held


def test_module_rules_of_ones_own():
    class Reverse(Positions):
        def forward(self, x):
            raise AssertionError("the rule takes its place")

    @module_rule("Reverse")
    def reverse(volume, module, forward, x):
        with volume.off():
            return volume.fold(volume.unfold(x, "Reverse").flip(2, 3, 4))

    volume = torch.randn(1, 2, 3, 4, 5)
    assert torch.equal(convert(nn.Sequential(Reverse()))(volume), volume.flip(2, 3, 4))


def test_a_class_with_a_name_of_timm_keeps_its_code():
    class SpaceToDepth(nn.Module):
        def forward(self, x):
            return x * 2

    volume = torch.randn(1, 2, 4, 4, 4)
    assert torch.equal(convert(nn.Sequential(SpaceToDepth()))(volume), volume * 2)
    Theirs = type("SpaceToDepth", (nn.PixelUnshuffle,), {"__module__": "timm.layers.space_to_depth", "bs": 2})
    assert convert(nn.Sequential(Theirs(2)))(volume).shape == (1, 8, 2, 2, 2)


def test_slice_layers_take_volumes_without_a_batch(net, volume):
    layer = convert(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)).double(), "2.5d", unsqueeze_axis=-1)[0]
    assert torch.equal(layer(volume[0]), layer(volume)[0])
    with pytest.raises(ValueError, match=r"input: expected .* got 3 dimensions"):
        layer(volume[0, 0])


def test_layers_of_ones_own(net, volume):
    def make(conv):
        layer = nn.Conv3d(conv.in_channels, conv.out_channels, 1, conv.stride[0])
        return layer.to(conv.weight)

    assert isinstance(convert(net, make).stem[0], nn.Conv3d)
    assert convert(net, make)(volume).shape == (2, 4)


def test_a_layer_that_cannot_be_made_changes_nothing(net):
    def make(conv):
        if conv.groups > 1:
            raise ValueError("no groups here")
        return nn.Conv3d(conv.in_channels, conv.out_channels, 1)

    with pytest.raises(ConversionError, match=r"block\.depthwise \(Conv2d\): no groups here"):
        convert(net, make, inplace=True)
    assert not any(isinstance(module, nn.Conv3d) for module in net.modules())


def test_a_converter_as_0_1_1_would_write_it(net, volume):
    class Wide(ACSConv):
        pass

    class WideConverter(BaseConverter):
        target_conv = Wide

        def convert_conv_kwargs(self, kwargs):
            return {**kwargs, "stride": kwargs["stride"][0]}

    expected = convert(net)(volume)
    converted = WideConverter(net)
    assert isinstance(converted.stem[0], Wide)
    assert relative_error(converted(volume), expected) < 1e-12
    with pytest.raises(TypeError, match="target_conv"):
        BaseConverter(nn.Conv2d(1, 1, 1))


def test_a_maker_that_is_not_hashable():
    class Maker:
        __hash__ = None

        def __call__(self, conv):
            return nn.Conv3d(conv.in_channels, conv.out_channels, 1)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    converted = copy.deepcopy(convert(net, Maker()))
    assert converted(torch.randn(1, 3, 4, 4, 4)).shape == (1, 4, 4, 4, 4)


def test_layers_of_ones_own_belong_to_the_copy(net):
    class Share(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.weight = conv.weight

        def forward(self, x):
            return F.conv3d(x, self.weight.unsqueeze(2))

    two = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    two[1].weight = two[0].weight
    converted = convert(two, Share)
    assert converted[0].weight is not two[0].weight
    assert converted[0].weight is converted[1].weight
    assert convert(two, Share, inplace=True)[0].weight is two[0].weight


def test_target_conv_keeps_gradients_and_hooks(volume):
    class Own(BaseConverter):
        target_conv = Wide

    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=(1, 1))).double()
    net[0].weight.requires_grad_(False)
    seen = []
    handle = net[0].register_forward_hook(lambda module, args, out: seen.append(out.dim()))
    Own(net)(volume)
    assert (net[0].weight.requires_grad, net[0].bias.requires_grad) == (False, True)
    handle.remove()
    net(volume)
    assert seen == [5]


class Wide(ACSConv):
    """Arguments of ``nn.Conv2d``, as a layer of one's own may have them."""

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride[0], padding=padding, **kwargs)


@pytest.mark.parametrize("base", [ACSConverter, SoftACSConverter, Conv2_5dConverter, Conv3dConverter])
def test_subclasses_of_the_named_converters(base):
    class Own(base):
        target_conv = Wide

    class OwnKwargs(Own):
        def convert_conv_kwargs(self, kwargs):
            return {**kwargs, "bias": True}

    class Back(Own):
        to = "acs"

    small = nn.Sequential(nn.Conv2d(3, 4, 3, padding=(1, 1), bias=False))
    assert isinstance(Own(copy.deepcopy(small))[0], Wide)
    assert OwnKwargs(copy.deepcopy(small))[0].bias is not None
    assert not isinstance(Back(copy.deepcopy(small))[0], Wide)

    with pytest.raises(TypeError, match="convert_module is never called"):
        type("Old", (base,), {"convert_module": lambda self, module: module})
    with pytest.raises(TypeError, match="__init__ is never called"):
        type("Old", (base,), {"__init__": lambda self, model: None})
    with pytest.raises(TypeError, match="target_conv"):
        type("Old", (base,), {"convert_conv_kwargs": lambda self, kwargs: kwargs})


def test_mean_of_layers_of_ones_own_is_refused():
    class Own(SoftACSConverter):
        target_conv = Wide

    with pytest.raises(TypeError, match="mean=True"):
        Own(nn.Conv2d(1, 3, 3), mean=True)


def test_a_target_conv_that_drops_weights_is_refused():
    class Holder(nn.Module):
        def __init__(self, *args, **kwargs):
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3)

    class Drops(BaseConverter):
        target_conv = Holder

    with pytest.raises(ConversionError, match="target_conv: Holder has no weight, bias"):
        Drops(nn.Sequential(nn.Conv2d(3, 4, 3)))
