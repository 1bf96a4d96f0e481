"""Converters: how a converted network meets people and PyTorch: hooks, parts, containers, threads, compilers."""

import copy
import pickle
import threading

import pytest
import torch
from acsconv.converters import (
    ACSConverter,
    Conv2_5dConverter,
    convert,
)
from acsconv.operators import ACSConv
from library.small_networks import Call
from numerics import relative_error
from torch import nn
from torch.utils.checkpoint import checkpoint


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


class Stages(nn.Module):
    """Asks, while it runs, which of its modules are poolings, as encoders of segmentation_models_pytorch do."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1)
        )

    def forward(self, x):
        outs = []
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                outs.append(x)
            x = module(x)
        return [*outs, x]


def test_code_that_asks_for_2d_classes():
    converted = convert(Stages().eval())
    first, last = converted(torch.randn(2, 3, 6, 8, 10))
    assert first.shape == (2, 4, 6, 8, 10) and last.shape == (2, 5, 3, 4, 5)
    pool, norm = converted.features[2], converted.features[1]
    assert isinstance(pool, nn.MaxPool3d) and isinstance(norm, nn.BatchNorm3d)
    assert pool.kernel_size == (2, 2, 2) and type(pool).__name__ == "MaxPool3d"
    for copied in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert isinstance(copied.features[2], nn.MaxPool3d) and isinstance(copied.features[2], nn.MaxPool2d)
        assert torch.equal(copied(torch.ones(1, 3, 4, 4, 4))[1], converted(torch.ones(1, 3, 4, 4, 4))[1])


def test_an_activation_that_networks_share():
    def network(activation=nn.ReLU(inplace=True)):  # noqa: B008  as networks in the wild have it
        return nn.Sequential(nn.Conv2d(1, 3, 3), activation)

    for to in (ACSConverter, Conv2_5dConverter):
        assert to(network())(torch.randn(1, 1, 5, 6, 7)).dim() == 5
    flat = network()
    image = torch.randn(1, 1, 5, 6)
    assert torch.equal(flat(image), flat[0](image).relu())
    assert flat[1] is network()[1]
