"""ACSConvNormAct, the switch on models and converters, and blocks that run twice for a budget."""

import copy
import gc
import pickle
import weakref
from collections import OrderedDict

import pytest
import torch
from acsconv.converters import ACSConverter, Conv2_5dConverter, Conv3dConverter, SoftACSConverter, convert
from acsconv.memory import ACSConvNormAct, make_memory_efficient
from acsconv.models import ACSUNet, EncoderDecoder, convnext, densenet, resnet, vgg
from acsconv.operators import ACSConv, SoftACSConv
from library.memory_networks import Residual, step, stored
from library.small_networks import Net
from torch import nn


def block(norm=nn.BatchNorm3d, act=nn.ReLU, conv=ACSConv, **options):
    return ACSConvNormAct(conv(3, 4, 3, padding=1, **options), norm(4), act())


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm3d, nn.InstanceNorm3d, lambda c: nn.GroupNorm(2, c)],
    ids=["batch", "instance", "group"],
)
def test_a_chain_stores_one_tensor_per_layer(norm):
    class Chain(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layers = nn.ModuleList(
                layer(ACSConv(4, 4, 3, padding=1), norm(4), nn.LeakyReLU(inplace=True)) for _ in range(3)
            )

        def forward(self, x):
            first = self.layers[0](x)
            middle = self.layers[1](first)
            # The residual goes in front of the activation.
            last = self.layers[2]
            if isinstance(last, ACSConvNormAct):
                return last(middle, first)
            return last[2](last[1](last[0](middle)) + first)

    plain = Chain(nn.Sequential).double()
    fused = Chain(ACSConvNormAct).double()
    fused.load_state_dict(plain.state_dict())
    volume = torch.randn(2, 4, 6, 6, 6, dtype=torch.float64)
    expected, gradients = step(plain, volume)
    out, found = step(fused, volume)
    assert torch.equal(out, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)
    for one, other in zip(fused.buffers(), plain.buffers()):
        assert torch.equal(one, other)
    # The input and an output of each convolution; and, at the end of the chain, nothing but the last activation.
    assert stored(fused, volume, recompute=True) <= 4.2 * volume.nbytes
    assert stored(plain, volume) >= 6.5 * volume.nbytes


@pytest.mark.parametrize("conv", [ACSConv, SoftACSConv, nn.Conv3d])
@pytest.mark.parametrize("bias", [True, False])
def test_evaluation_folds_batch_norm(conv, bias):
    module = block(conv=conv, bias=bias).double()
    volume, residual = (torch.randn(2, c, 5, 5, 5, dtype=torch.float64) for c in (3, 4))
    module(volume)
    nn.init.normal_(module[1].weight)
    module.eval()
    expected = nn.Sequential(*module)(volume)
    calls = []
    with torch.no_grad():
        torch.testing.assert_close(module(volume), expected)
        torch.testing.assert_close(module(volume, residual), (module[1](module[0](volume)) + residual).relu())
        with pytest.raises(ValueError, match="expected 5D input"):
            module(volume[0])  # as the norm says
        handle = module[1].register_forward_hook(lambda *_: calls.append(1))
        assert torch.equal(module(volume), expected)  # with somebody looking on, nothing is folded
        handle.remove()
        module(volume)
        assert len(calls) == 1
        module.train()
        assert torch.equal(module(volume), nn.Sequential(*copy.deepcopy(module))(volume))


def test_evaluation_folds_a_norm_of_images():
    module = ACSConvNormAct(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).double().eval()
    nn.init.normal_(module[1].running_mean)
    with torch.no_grad():
        for batch in (2, 4):
            image = torch.randn(batch, 3, 5, 5, dtype=torch.float64)
            torch.testing.assert_close(module(image), module[1](module[0](image)))


def test_what_it_is_made_of():
    named = ACSConvNormAct(OrderedDict(conv=ACSConv(1, 2, 3), norm=nn.BatchNorm3d(2)))
    assert [key for key in named.state_dict() if key.endswith("weight")] == ["conv.weight", "norm.weight"]
    assert named(torch.randn(2, 1, 4, 4, 4)).shape == (2, 2, 2, 2, 2)
    assert ACSConvNormAct(nn.Conv3d(1, 2, 1), nn.GELU())(torch.randn(1, 1, 2, 2, 2)).shape == (1, 2, 2, 2, 2)
    for wrong in ((), (ACSConv(1, 2, 3),), (nn.BatchNorm3d(2), nn.ReLU()), (nn.ReLU(), nn.BatchNorm3d(1))):
        with pytest.raises(TypeError, match="expected a convolution"):
            ACSConvNormAct(*wrong)
    with pytest.raises(TypeError, match="got ACSConv, ReLU, BatchNorm3d"):
        ACSConvNormAct(ACSConv(1, 2, 3), nn.ReLU(), nn.BatchNorm3d(2))


MODELS = {
    "unet": (lambda **o: ACSUNet(2, **o), (2, 1, 8, 8, 8), 0.6),
    "resnet": (
        lambda **o: resnet.FCNResNet(None, 2, "resnet10", high_resolution=False, **o),
        (2, 3, 17, 17, 17),
        0.7,
    ),
    "resnet-cls": (lambda **o: resnet.ClsResNet(None, 2, "resnet10", **o), (2, 3, 4, 4, 4), 0.7),
    "vgg": (lambda **o: vgg.FCNVGG(None, 2, "vgg11", **o), (2, 3, 8, 8, 8), 0.7),
    "densenet": (
        lambda **o: densenet.FCNDenseNet(None, 2, block_config=(1, 2, 1, 1), **o),
        (2, 3, 8, 8, 8),
        0.5,
    ),
    "convnext": (
        lambda **o: convnext.FCNConvNeXt(None, 2, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), **o),
        (2, 3, 32, 32, 32),
        0.8,
    ),
    "encoder-decoder": (
        lambda **o: EncoderDecoder(resnet.resnet10(in_channels=1), 2, (8, 4), size=(8, 8, 8), **o),
        (2, 1, 8, 8, 8),
        0.7,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_switch(name):
    build, shape, part = MODELS[name]
    network, volume = build(memory_efficient=True), torch.randn(shape)
    plain = build()
    assert list(plain.state_dict()) == list(network.state_dict())
    plain.load_state_dict(network.state_dict())
    assert stored(network, volume, recompute=True) <= part * stored(plain, volume)
    assert network._forward_pre_hooks or network.backbone._forward_pre_hooks


CONVERTERS = {
    "acs": lambda net: ACSConverter(net, memory_efficient=True),
    "soft": lambda net: SoftACSConverter(net, memory_efficient=True),
    "mean": lambda net: SoftACSConverter(net, mean=True, memory_efficient=True),
    "2.5d": lambda net: Conv2_5dConverter(net, memory_efficient=True),
    "3d": lambda net: Conv3dConverter(net, i3d_repeat_axis=-3, memory_efficient=True),
    "function": lambda net: convert(net, memory_efficient=True),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_has_the_switch(name, net, volume):
    changed = CONVERTERS[name](copy.deepcopy(net)).train()
    to = "acs" if name == "function" else name
    plain = convert(net, to).train()
    plain.load_state_dict(changed.state_dict())
    expected, gradients = step(plain, volume)
    out, found = step(changed, volume)
    assert torch.equal(out, expected)
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-8, atol=1e-10)
    assert stored(changed, volume, recompute=True) < 0.9 * stored(plain, volume)


def test_a_network_may_be_converted_afterwards(net, volume):
    plain = ACSConverter(copy.deepcopy(net)).train()
    changed = ACSConverter(make_memory_efficient(net)).train()
    assert any("_acs_forward" in vars(module) for module in changed.modules())
    changed.load_state_dict(plain.state_dict())
    for which in (changed, pickle.loads(pickle.dumps(changed)), copy.deepcopy(changed)):
        expected, gradients = step(plain, volume)
        out, found = step(which, volume)
        assert torch.equal(out, expected)
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-8, atol=1e-10)


class WithDropout(nn.Sequential):
    def __init__(self):
        super().__init__(
            ACSConv(2, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            *(nn.Sequential(Residual(4), nn.Dropout(0.3), nn.Conv3d(4, 4, 1)) for _ in range(6)),
        )


def test_a_budget_picks_blocks_that_run_twice():
    network = WithDropout().double()
    volume = torch.randn(2, 2, 6, 6, 6, dtype=torch.float64)
    free, report = make_memory_efficient(copy.deepcopy(network), example=tuple(volume.shape), report=True)
    assert report.before == stored(network, volume)
    assert report.after == stored(free, volume, recompute=True)
    part = 0.8 * report.after / report.before
    tight, tighter = make_memory_efficient(
        copy.deepcopy(network), example=tuple(volume.shape), budget=part, report=True
    )
    twice = [change.path for change in tighter.changes if change.note == "runs twice"]
    assert twice
    assert tighter.after <= part * tighter.before
    assert stored(tight, volume, recompute=True) < stored(free, volume, recompute=True)
    assert list(tight.state_dict()) == list(network.state_dict())
    for copied in (tight, copy.deepcopy(tight), pickle.loads(pickle.dumps(tight))):
        copied.load_state_dict(network.state_dict())
        expected_network = copy.deepcopy(network)
        expected, gradients = step(expected_network, volume)
        out, found = step(copied, volume)
        assert torch.equal(out, expected)
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-8, atol=1e-8)
        for one, other in zip(copied.buffers(), expected_network.buffers()):
            assert torch.equal(one, other)
    assert "runs twice" in str(tighter)


class UnderTwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = ACSConv(2, 4, 3, padding=1)
        self.stages = nn.ModuleList(Residual(4) for _ in range(6))
        for index, block in enumerate(self.stages):
            self.add_module(f"layer{index}", block)

    def forward(self, x):
        x = self.stem(x)
        for block in self.stages:
            x = block(x)
        return x


def test_blocks_under_two_names():
    network = UnderTwoNames()
    network, report = make_memory_efficient(network, example=(2, 2, 6, 6, 6), budget=0.45, report=True)
    twice = {change.path for change in report.changes if change.note == "runs twice"}
    assert twice and twice <= {f"stages.{index}" for index in range(6)}
    assert {f"stages.{i}" for i, block in enumerate(network.stages) if "forward" in vars(block)} == twice


def test_blocks_run_again_for_every_backward_pass():
    network = WithDropout().double()
    volume = torch.randn(2, 2, 6, 6, 6, dtype=torch.float64)
    plain = copy.deepcopy(network)
    make_memory_efficient(network, example=tuple(volume.shape), budget=0.45)
    gradients = []
    for which in (plain, network):
        torch.manual_seed(1)
        loss = which(volume).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        gradients.append([p.grad for p in which.parameters()])
    for expected, found in zip(*gradients):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    for expected, found in zip(plain.buffers(), network.buffers()):
        assert torch.equal(found, expected)


def test_a_network_goes_at_once():
    network = make_memory_efficient(WithDropout(), example=(2, 2, 6, 6, 6), budget=0.45)
    references = [weakref.ref(module) for module in network.modules()]
    gc.disable()
    try:
        del network
        assert not any(reference() for reference in references)
    finally:
        gc.enable()


def test_errors_of_the_switch():
    network = Net()
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        make_memory_efficient(3)
    with pytest.raises(ValueError, match="budget: needs an example"):
        make_memory_efficient(network, budget=0.5)
    network = WithDropout()
    with pytest.raises(ValueError, match="the least that can be reached is"):
        make_memory_efficient(network, budget=1000, example=(1, 2, 6, 6, 6))
    with pytest.raises(ValueError, match=r"budget: expected bytes \(an int\) or a part"):
        make_memory_efficient(network, budget=1.5, example=(1, 2, 6, 6, 6))
    assert not network._forward_pre_hooks  # nothing has been changed
