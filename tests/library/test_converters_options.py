"""Converters: arguments of convert(), rules and layers of one's own, subclasses of the named converters."""

import copy

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
from acsconv.operators import ACSConv
from library.small_networks import Block, Call, Positions
from numerics import relative_error
from torch import nn


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
