"""Networks whose activations can be made again, each in its own way, and what a training step of them stores."""

from __future__ import annotations

from itertools import pairwise

import torch
from acsconv.memory import recomputing
from acsconv.operators import ACSConv, ACSConvTranspose
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels):
    return nn.GroupNorm(2, channels)


def chain(norm, act, widths=(1, 4, 4, 8), conv=ACSConv) -> nn.Sequential:
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [conv(inputs, outputs, 3, padding=1), norm(outputs), act()]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """As torchvision writes it: sums in place, an activation that serves twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ACSConv(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = ACSConv(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class UNet(nn.Module):
    """Skips, upsampling by interpolation and by a transposed convolution, functional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = chain(nn.BatchNorm3d, nn.ReLU, (1, 4, 4))
        self.coarse = chain(nn.InstanceNorm3d, nn.LeakyReLU, (4, 8, 8))
        self.up = ACSConvTranspose(8, 4, 2, stride=2)
        self.merge = nn.Conv3d(4 + 4 + 8, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.head = ACSConv(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.coarse(F.max_pool3d(fine, 2))
        resized = F.interpolate(coarse, scale_factor=2, mode="trilinear")
        out = self.merge(torch.cat([fine, self.up(coarse), resized], 1))
        return self.head(F.relu(self.norm(out)))


class Dense(nn.Module):
    """Norm and activation in front of the convolution; every layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ACSConv(1, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm3d(4 + 2 * i) for i in range(4))
        self.convs = nn.ModuleList(ACSConv(4 + 2 * i, 2, 3, padding=1) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return x


def step(network: nn.Module, volume: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A training step: the output, and the gradients by the parameters' names."""
    torch.manual_seed(1)
    network.zero_grad()
    out = network(volume)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def stored(network: nn.Module, volume: Tensor, recompute: bool = False) -> int:
    """Bytes of the storages that one forward pass leaves for the backward pass, parameters and buffers apart."""
    known = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    if recompute:
        context = recomputing(lambda kept: [note(leaf.tensor) for leaf in kept.leaves()])
    else:
        context = torch.autograd.graph.saved_tensors_hooks(lambda t: note(t.detach()), lambda t: t)
    with context:
        network(volume)
    return sum(t.untyped_storage().nbytes() for key, t in found.items() if key not in known)


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
