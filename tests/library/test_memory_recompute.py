"""Recomputation: what is stored, and that nothing else changes."""

import copy

import pytest
import torch
from acsconv.memory import activation, estimate, make_memory_efficient, recomputing
from acsconv.memory import recompute as engine
from acsconv.operators import ACSConv, SoftACSConv
from library.memory_networks import (
    Dense,
    Residual,
    UNet,
    assert_same,
    chain,
    group_norm,
    step,
    stored,
    volume_for,
)
from torch import nn


def channels_last(network):
    return network.to(memory_format=torch.channels_last_3d)


#: The network, and the part of what is stored that remains, at most.
CASES = {
    "batch-relu": (lambda: chain(nn.BatchNorm3d, lambda: nn.ReLU(inplace=True)), 0.56),
    "batch-relu-copies": (lambda: chain(nn.BatchNorm3d, nn.ReLU), 0.56),
    "batch-leaky": (lambda: chain(nn.BatchNorm3d, lambda: nn.LeakyReLU(0.2, inplace=True)), 0.56),
    "batch-elu": (lambda: chain(nn.BatchNorm3d, lambda: nn.ELU(0.5, inplace=True)), 0.56),
    "batch-hardtanh": (lambda: chain(nn.BatchNorm3d, nn.ReLU6), 0.42),
    "batch-prelu": (lambda: chain(nn.BatchNorm3d, nn.PReLU), 0.42),
    "batch-gelu": (lambda: chain(nn.BatchNorm3d, lambda: nn.GELU("tanh")), 0.42),
    "instance-leaky": (
        lambda: chain(lambda c: nn.InstanceNorm3d(c, affine=True), lambda: nn.LeakyReLU(inplace=True)),
        0.56,
    ),
    "instance-plain": (lambda: chain(nn.InstanceNorm3d, nn.Mish), 0.42),
    "instance-tracked": (
        lambda: chain(lambda c: nn.InstanceNorm3d(c, track_running_stats=True), nn.ReLU),
        0.56,
    ),
    "group-silu": (lambda: chain(group_norm, nn.SiLU), 0.42),
    "group-hardswish": (lambda: chain(group_norm, nn.Hardswish, conv=nn.Conv3d), 0.42),
    "sync-sigmoid": (lambda: chain(nn.SyncBatchNorm, nn.Sigmoid, conv=SoftACSConv), 0.56),
    "no-momentum": (lambda: chain(lambda c: nn.BatchNorm3d(c, momentum=None), nn.Tanh), 0.56),
    "dropout": (lambda: chain(lambda c: nn.Sequential(nn.BatchNorm3d(c), nn.Dropout3d(0.5)), nn.SiLU), 0.42),
    "residual": (
        lambda: nn.Sequential(ACSConv(2, 4, 3), nn.BatchNorm3d(4), *(Residual(4) for _ in range(6))),
        0.62,
    ),
    "unet": (UNet, 0.55),
    "dense": (Dense, 0.35),
    "channels-last": (lambda: channels_last(chain(nn.BatchNorm3d, nn.ReLU)), 0.56),
}


@pytest.mark.parametrize("case", CASES)
def test_less_is_stored_and_nothing_else_changes(case):
    build, part = CASES[case]
    network = build().double()
    volume = volume_for(network, dtype=torch.float64)
    if case == "channels-last":
        volume = volume.contiguous(memory_format=torch.channels_last_3d)
    changed = make_memory_efficient(copy.deepcopy(network))
    assert list(changed.state_dict()) == list(network.state_dict())
    for _ in range(2):
        assert_same(network, changed, volume)
    assert_same(network.eval(), changed.eval(), volume)
    assert_same(network.train(), changed.train(), volume)
    assert stored(changed, volume, recompute=True) <= part * stored(network, volume)


def test_frozen_norms_are_made_again():
    network = chain(nn.BatchNorm3d, nn.ReLU).double()
    volume = volume_for(network, dtype=torch.float64)
    network(volume)
    for module in network:
        if isinstance(module, nn.BatchNorm3d):
            module.eval().requires_grad_(False)
            nn.init.normal_(module.bias)
    changed = make_memory_efficient(copy.deepcopy(network))
    assert_same(network, changed, volume)
    assert stored(changed, volume, recompute=True) <= 0.56 * stored(network, volume)


class ResidualAlone(nn.Module):
    """No norm that would store the convolution's output."""

    def __init__(self, *_):
        super().__init__()
        self.conv, self.act = ACSConv(4, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.conv(x) + x)


def test_what_is_not_used_does_not_wait():
    plain = nn.Sequential(*(layer for _ in range(6) for layer in (ACSConv(4, 4, 3, padding=1), nn.ReLU())))
    for network in (plain, nn.Sequential(*map(ResidualAlone, range(6)))):
        before = estimate(network, 8, batch=2).peak
        assert estimate(make_memory_efficient(network), 8, batch=2).peak <= before


def test_what_has_no_rule_is_stored():
    class Odd(nn.Module):
        def forward(self, x):
            return x.sin()

    network = chain(nn.BatchNorm3d, Odd).double()
    volume = volume_for(network, dtype=torch.float64)
    assert_same(network, make_memory_efficient(copy.deepcopy(network)), volume)
    network = chain(nn.Identity, nn.ReLU).double()  # a convolution's output is no better than its activation
    changed = make_memory_efficient(copy.deepcopy(network))
    assert_same(network, changed, volume)
    assert stored(changed, volume, recompute=True) == stored(network, volume)


class BiasAlone(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x):
        return torch.nn.functional.batch_norm(x, None, None, None, self.bias, True)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_norm_with_a_bias_and_no_weight(is_frozen):
    network = chain(BiasAlone, nn.SiLU).double()
    volume = volume_for(network, dtype=torch.float64)
    for module in network:
        if isinstance(module, BiasAlone):
            module.requires_grad_(not is_frozen)
    changed = make_memory_efficient(copy.deepcopy(network))
    assert_same(network, changed, volume)
    # A frozen bias that no norm of PyTorch's tells of is not in the graph: the norm's output is stored.
    part = stored(changed, volume, recompute=True) / stored(network, volume)
    assert part <= 0.42 if not is_frozen else 0.6 < part < 0.85


@pytest.mark.parametrize("norm", [nn.BatchNorm3d, lambda c: nn.InstanceNorm3d(c, affine=True), group_norm])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_statistics_of_small_values(norm, dtype):
    network = chain(norm, nn.SiLU, (1, 4, 4)).to(dtype)
    with torch.no_grad():
        network[0].weight.mul_(1e-3)  # 1 / sigma, squared, is no float16
        network[0].bias.mul_(1e-3)
    volume = volume_for(network).to(dtype)
    _, gradients = step(network, volume)
    _, found = step(make_memory_efficient(copy.deepcopy(network)), volume)
    assert all(gradient.isfinite().all() for gradient in found.values())
    error = (found["3.weight"] - gradients["3.weight"]).double().norm()
    assert error <= 0.02 * gradients["3.weight"].double().norm()


class Sum(nn.Module):
    """What a norm or an activation gives, and a parameter that changes afterwards."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation
        self.conv, self.next = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 1)
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1, 1))

    def forward(self, x):
        out = self.operation(nn.functional.silu(self.conv(x)), self.scale)
        with torch.no_grad():
            self.scale.add_(1)
        return self.next(out)


def test_a_parameter_that_changes_while_the_network_runs():
    network = Sum(torch.add).double()
    volume = volume_for(network, dtype=torch.float64)
    assert_same(network, make_memory_efficient(copy.deepcopy(network)), volume)
    network = make_memory_efficient(Sum(torch.mul).double())
    network(volume)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        step(network, volume)


class Repeated(nn.Module):
    def __init__(self, operation, times):
        super().__init__()
        self.conv, self.operation, self.times = nn.Conv3d(1, 1, 1), operation, times

    def forward(self, x):
        first = out = self.conv(x)
        for _ in range(self.times):
            out = self.operation(out, first)
        return out.sigmoid()


def test_the_search_has_an_end(monkeypatch):
    steps = []
    rule = engine.RULES["AddBackward0"]
    monkeypatch.setitem(engine.RULES, "AddBackward0", lambda *arguments: steps.append(1) or rule(*arguments))
    for operation, times in ((torch.add, 400), (lambda out, first: out + out.transpose(2, 3), 20)):
        network = Repeated(operation, times).double()
        volume = volume_for(network, 2, dtype=torch.float64)
        steps.clear()
        assert_same(network, make_memory_efficient(copy.deepcopy(network)), volume)
        assert len(steps) <= engine.MOST_NODES


def test_autocast():
    network = chain(nn.BatchNorm3d, lambda: nn.ReLU(inplace=True), (1, 8, 8, 8))
    volume = volume_for(network)
    changed = make_memory_efficient(copy.deepcopy(network))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before, after = stored(network, volume), stored(changed, volume, recompute=True)
        expected, out = network(volume), changed(volume)
    assert out.dtype == torch.bfloat16
    assert after <= 0.6 * before
    expected.float().square().sum().backward()
    out.float().square().sum().backward()
    for one, other in zip(changed.parameters(), network.parameters()):
        assert (one.grad - other.grad).norm() <= 0.02 * other.grad.norm() + 1e-2


def test_gradients_of_both_orders():
    network = chain(nn.BatchNorm3d, nn.SiLU, (1, 2, 1)).double()
    volume = torch.randn(2, 1, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(volume, *parameters):
        with recomputing():
            return torch.func.functional_call(
                network, dict(zip(dict(network.named_parameters()), parameters)), (volume,)
            )

    inputs = (volume, *network.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("slope", [0, 0.1])
def test_an_activation_that_was_made_again_gives_its_place_to_the_gradient(slope, monkeypatch):
    act = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
    network = chain(nn.BatchNorm3d, lambda: copy.deepcopy(act), (1, 4, 4)).double()
    volume = volume_for(network, dtype=torch.float64, requires_grad=True)
    changed = make_memory_efficient(copy.deepcopy(network))
    free = []
    monkeypatch.setattr(activation, "is_spent", lambda t: free.append(engine.is_spent(t)) or free[-1])
    (expected,) = torch.autograd.grad(network(volume).square().sum(), volume, create_graph=True)
    (found,) = torch.autograd.grad(changed(volume).square().sum(), volume, create_graph=True)
    torch.testing.assert_close(found, expected)
    expected, found = (torch.autograd.grad(g.square().sum(), volume)[0] for g in (expected, found))
    torch.testing.assert_close(found, expected)
    free.clear()
    out = changed(volume)
    first, second = (torch.autograd.grad(out.square().sum(), volume, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert free == [True] * 4
    stored_ones = nn.Sequential(nn.Conv3d(1, 2, 1), copy.deepcopy(act), nn.Conv3d(2, 1, 1)).double()
    out = make_memory_efficient(stored_ones)(volume)
    free.clear()
    torch.autograd.grad(out.sum(), volume)
    assert free == [False]


def test_a_leaky_activation_may_be_changed_afterwards():
    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.head = ACSConv(1, 4, 3, padding=1), nn.LeakyReLU(0.1), ACSConv(4, 2, 1)

        def forward(self, x):
            out = self.act(self.conv(x))
            out += x
            return self.head(out)

    network = Changed().double()
    volume = volume_for(network, dtype=torch.float64)
    assert_same(network, make_memory_efficient(copy.deepcopy(network)), volume)
