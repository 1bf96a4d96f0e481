"""Recomputation beside the rest of PyTorch: hooks, copies, tracers, compilers, checkpoints, errors."""

import contextlib
import copy
import gc
import pickle
import weakref

import pytest
import torch
from acsconv.memory import make_memory_efficient, recomputing
from acsconv.memory import recompute as engine
from acsconv.operators import ACSConv
from library.memory_networks import assert_same, chain, group_norm, step, volume_for
from torch import nn
from torch.utils.checkpoint import checkpoint


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
