"""Recomputation: what is stored, and that nothing else changes."""

import contextlib
import copy
import gc
import pickle
import weakref

import pytest
import torch
from acsconv.memory import activation, estimate, make_memory_efficient, recomputing
from acsconv.memory import recompute as engine
from acsconv.operators import ACSConv, SoftACSConv
from library.memory_networks import Dense, Residual, UNet, chain, step, stored
from torch import nn
from torch.utils.checkpoint import checkpoint


def volume_for(network, edge=6, **options):
    channels = next(m.in_channels for m in network.modules() if hasattr(m, "in_channels"))
    return torch.randn(2, channels, edge, edge, edge, **options)


def assert_same(network, changed, volume):
    """One training step of both: outputs bit for bit, gradients within rounding, statistics bit for bit."""
    expected, gradients = step(network, volume)
    out, found = step(changed, volume)
    assert torch.equal(out, expected)
    assert found.keys() == gradients.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=float(1e-12 * largest), msg=name)
    for (name, buffer), other in zip(network.named_buffers(), changed.buffers()):
        assert torch.equal(other, buffer), name


def group_norm(channels):
    return nn.GroupNorm(2, channels)


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


def test_hooks_see_what_they_saw():
    network = chain(nn.BatchNorm3d, nn.ReLU).double()
    volume = volume_for(network, dtype=torch.float64)
    changed = make_memory_efficient(copy.deepcopy(network))
    seen = []
    for which in (network, changed):
        for module in which:
            module.register_forward_hook(lambda module, inputs, out: seen.append(out.detach().clone()))
            module.register_full_backward_hook(lambda module, inputs, out: seen.append(out[0].clone()))
        step(which, volume)
    half = len(seen) // 2
    assert half == 2 * len(network)
    for one, other in zip(seen[:half], seen[half:]):
        torch.testing.assert_close(one, other)


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


def test_several_gradients_at_once():
    network = chain(nn.BatchNorm3d, nn.ReLU, (1, 2, 2)).double().eval()
    volume = volume_for(network, 2, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(network, volume, vectorize=True)
    found = torch.autograd.functional.jacobian(make_memory_efficient(network), volume, vectorize=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_traced():
    network = make_memory_efficient(chain(nn.BatchNorm3d, nn.ReLU).eval())
    volume = volume_for(network)
    torch.testing.assert_close(torch.jit.trace(network, volume)(volume), network(volume))


def test_copies():
    network = chain(nn.BatchNorm3d, nn.ReLU).double()
    volume = volume_for(network, dtype=torch.float64)
    changed = make_memory_efficient(copy.deepcopy(network))
    for copied in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        assert_same(copy.deepcopy(network), copied, volume)
    make_memory_efficient(changed)
    assert len(changed._forward_pre_hooks) == 1


def test_compiled():
    network = chain(nn.InstanceNorm3d, nn.LeakyReLU, (1, 4)).double()
    volume = volume_for(network, 4, dtype=torch.float64)
    changed = torch.compile(
        make_memory_efficient(copy.deepcopy(network)), backend="aot_eager", fullgraph=True
    )
    expected, gradients = step(network, volume)
    out, found = step(changed, volume)
    torch.testing.assert_close(out, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found["_orig_mod." + name], gradient)


def test_under_a_checkpoint_it_is_off():
    network = chain(nn.BatchNorm3d, nn.ReLU).double()
    volume = volume_for(network, dtype=torch.float64)
    changed = make_memory_efficient(copy.deepcopy(network))
    found = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: found.append(t.detach()) or t.detach(), lambda t: t
    ):
        out = checkpoint(changed, volume, use_reentrant=False)
    assert {t.shape for t in found} <= {volume.shape, (0,)}
    out.sum().backward()


class Checkpointed(nn.Module):
    """``calls`` counts how often it runs."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.calls = nn.Sequential(*layers), 0

    def run(self, x):
        self.calls += 1
        return self.layers(x)

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False)


@pytest.mark.parametrize(
    "last",
    [
        lambda: [nn.BatchNorm3d(4), nn.SiLU()],
        lambda: [nn.GroupNorm(2, 4), nn.SiLU()],
        lambda: [nn.LayerNorm(4)],
        lambda: [nn.PReLU(4)],
        lambda: [nn.Dropout(0.3)],
    ],
    ids=["batch", "group", "layer", "prelu", "dropout"],
)
def test_the_search_runs_no_checkpoint(last):
    network = nn.Sequential(
        ACSConv(1, 4, 3, padding=1),
        *(Checkpointed(ACSConv(4, 4, 3, padding=1), *last()) for _ in range(2)),
        Checkpointed(*last()),  # what it is made of is stored: the search goes on inside
        ACSConv(4, 2, 1),
    ).double()
    volume = volume_for(network, 4, dtype=torch.float64)
    changed = make_memory_efficient(copy.deepcopy(network))
    out = changed(volume)
    assert [block.calls for block in changed[1:4]] == [1, 1, 1]
    out.sum().backward()
    assert [block.calls for block in changed[1:4]] == [2, 2, 2]
    assert_same(network, make_memory_efficient(copy.deepcopy(network)), volume)


def test_torch_func():
    network = make_memory_efficient(chain(group_norm, nn.ReLU).double())
    volume = volume_for(network, 4, dtype=torch.float64)
    gradient = torch.func.grad(lambda v: network(v).square().sum())(volume)
    leaf = volume.clone().requires_grad_()
    network(leaf).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)
    tangent = torch.func.jvp(network, (volume,), (torch.ones_like(volume),))[1]
    assert tangent.shape == (2, 8, 4, 4, 4)


def test_a_graph_can_be_used_twice_and_leaves_nothing():
    network = make_memory_efficient(chain(nn.BatchNorm3d, lambda: nn.ReLU(inplace=True)).double())
    volume = volume_for(network, dtype=torch.float64)
    kept = []
    handle = network[0].register_forward_hook(lambda module, inputs, out: kept.append(weakref.ref(out)))
    gc.disable()  # what goes, goes without it
    try:
        loss = network(volume).square().sum()
        loss.backward(retain_graph=True)
        first = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
        loss.backward()
        for one, parameter in zip(first, network.parameters()):
            torch.testing.assert_close(one, parameter.grad)
        assert engine._last().value is None
        references = [weakref.ref(stored_now) for stored_now in _stored_objects(network[0](volume).grad_fn)]
        del loss
        assert all(reference() is None for reference in [*kept, *references])
    finally:
        gc.enable()
        handle.remove()


def _stored_objects(node):
    return [r() for r in node.metadata.get(engine._KEY, {}).values() if r() is not None]


def test_a_tensor_that_is_changed_in_place_is_found_out():
    conv, norm = ACSConv(1, 4, 3), nn.BatchNorm3d(4)
    with recomputing():
        middle = conv(torch.randn(1, 1, 6, 6, 6))
        out = norm(middle).relu()
    with torch.no_grad():
        middle.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return x


def assert_nothing_runs():
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    assert not engine._contexts()


def failing(error):
    return make_memory_efficient(nn.Sequential(ACSConv(1, 4, 3), nn.BatchNorm3d(4), Failing(error)))


def test_a_failure_leaves_nothing_behind():
    volume = torch.randn(1, 1, 6, 6, 6)
    with pytest.raises(torch.OutOfMemoryError):
        failing(torch.OutOfMemoryError("no memory"))(volume)
    assert_nothing_runs()
    with pytest.raises(KeyboardInterrupt):
        failing(KeyboardInterrupt())(volume)
    failing(None)(volume)  # after an interrupt, with the next forward pass
    assert_nothing_runs()
    inner = failing(None)
    inner.register_forward_pre_hook(Failing(RuntimeError("no")).forward, prepend=True)
    seen = []

    def run(module, inputs):
        with contextlib.suppress(TypeError):
            inner(volume)
        seen.append(len(engine._contexts()))

    outer = failing(None)
    outer[2].register_forward_pre_hook(run)
    outer(volume)
    assert seen == [1]  # the outer network's context is still there
    assert_nothing_runs()


def test_a_failure_of_the_backward_pass_leaves_nothing_behind():
    def fail(gradient):
        raise torch.OutOfMemoryError("no memory")

    network = make_memory_efficient(chain(nn.BatchNorm3d, nn.ReLU))
    network[5].register_forward_hook(lambda module, inputs, out: out.register_hook(fail) and None)
    volume = volume_for(network)
    for give_up in (lambda out: None, lambda out: network(volume)):
        out = network(volume)
        with pytest.raises(torch.OutOfMemoryError):
            out.sum().backward()
        assert engine._last().value is not None
        out = give_up(out)
        assert engine._last().value is None
