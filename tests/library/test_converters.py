"""Converters: what a converted network keeps: keys, weights, modes, sharing, hooks, checkpoints.

The networks of these files are small and made of PyTorch alone (small_networks.py); test_converters_zoo.py takes
those of torchvision and others.
"""

import copy
import io
import pickle

import pytest
import torch
from acsconv.converters import (
    ACSConverter,
    convert,
)
from acsconv.operators import ACSConv, ACSConvTranspose, Conv2_5d, SoftACSConv
from library.small_networks import TARGETS, Net
from torch import nn


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
