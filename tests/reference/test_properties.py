"""The exact checks of the definition: what holds for every implementation, here for every backend that is available."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from numerics import VIEW_AXES

from acsconv_cuda import acs_conv3d, soft_acs_conv3d
from acsconv_cuda.geometry import resolve

GEOMETRIES = [
    {"kernel": (3, 3), "padding": 1},
    {"kernel": (3, 3), "padding": 1, "stride": 2},
    {"kernel": (3, 3), "padding": 0},
    {"kernel": (3, 3), "padding": 2, "dilation": 2, "stride": 2},
    {"kernel": (3, 3), "padding": 1, "dilation": 2},
    {"kernel": (5, 5), "padding": 2},
    {"kernel": (2, 2), "stride": 2},
    {"kernel": (4, 4), "padding": 1, "stride": 2},
    {"kernel": (4, 4), "padding": "same"},
    {"kernel": (3, 5), "padding": (1, 2)},
]


def integers(*shape):
    return torch.randint(-4, 5, shape).double()


def split_options(options):
    options = dict(options)
    return options.pop("kernel"), options


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("view", range(3))
def test_constant_along_the_thin_axis_equals_conv2d(backend, device, options, view):
    kernel, options = split_options(options)
    weight, bias = integers(5, 3, *kernel), integers(5)
    image = integers(2, 3, 9, 8)
    volume = (
        image.unsqueeze(2 + view)
        .expand(-1, -1, *(7 if axis == view else -1 for axis in range(3)))
        .contiguous()
    )
    split = [0, 0, 0]
    split[view] = 5
    out = acs_conv3d(
        volume.to(device),
        weight.to(device),
        bias.to(device),
        split=split,
        backend=backend,
        **options,
    )
    expected = F.conv2d(image, weight, bias, **options)
    slices = out.cpu().unbind(2 + view)
    geometry = resolve(
        kernel, options.get("stride", 1), options.get("padding", 0), options.get("dilation", 1)
    )
    for position, one in enumerate(slices):
        thin = position * geometry.stride[view] + geometry.origin[view][view]
        if 0 <= thin < 7:
            torch.testing.assert_close(one, expected, rtol=0, atol=0)
        else:
            torch.testing.assert_close(one, bias[None, :, None, None].expand_as(one), rtol=0, atol=0)


@pytest.mark.parametrize("axes", list(itertools.combinations(range(3), 2)), ids=["D-H", "D-W", "H-W"])
@pytest.mark.parametrize("kernel_size", [2, 3, 4])
def test_swapping_two_axes(backend, device, axes, kernel_size):
    """Input, stride, padding and dilation swapped: the output's axes are swapped, where the groups trade places too."""
    first, second = axes
    stride, dilation = [1, 2, 1], [1, 1, 2]
    padding = [d * (kernel_size - 1) // 2 for d in dilation]
    split = (2, 3, 4)
    weight, volume = integers(9, 2, kernel_size, kernel_size), integers(1, 2, 7, 8, 9)
    out = acs_conv3d(
        volume.to(device),
        weight.to(device),
        split=split,
        stride=stride,
        padding=padding,
        dilation=dilation,
        backend=backend,
    ).cpu()

    def swapped(values):
        values = list(values)
        values[first], values[second] = values[second], values[first]
        return values

    # View v (thin axis v) becomes the view whose thin axis is v's partner; its kernel is transposed where the swap
    # exchanges the order of its row and column axes.
    partner = swapped(range(3))
    groups = weight.split(split)
    moved = []
    for view in range(3):
        source = partner[view]
        row, column = (partner[axis] for axis in VIEW_AXES[source])
        moved.append(groups[source] if (row, column) == VIEW_AXES[view] else groups[source].transpose(2, 3))
    expected = acs_conv3d(
        volume.transpose(2 + first, 2 + second).to(device),
        torch.cat(moved).to(device),
        split=swapped(split),
        stride=swapped(stride),
        padding=swapped(padding),
        dilation=swapped(dilation),
        backend=backend,
    ).cpu()
    parts = expected.transpose(2 + first, 2 + second).split(swapped(split), 1)
    torch.testing.assert_close(out, torch.cat([parts[partner[view]] for view in range(3)], 1), rtol=0, atol=0)


@pytest.mark.parametrize("stride,padding,groups", [(1, 0, 1), (2, 0, 2), (1, 1, 1), (3, 1, 2)])
def test_one_by_one_kernel_equals_conv3d(backend, device, stride, padding, groups):
    volume, weight, bias = integers(2, 4, 5, 6, 7), integers(6, 4 // groups, 1, 1), integers(6)
    options = {"stride": stride, "padding": padding, "groups": groups}
    tensors = [t.to(device) for t in (volume, weight, bias)]
    out = acs_conv3d(*tensors, backend=backend, **options).cpu()
    torch.testing.assert_close(out, F.conv3d(volume, weight[..., None], bias, **options), rtol=0, atol=0)
    view_weights = torch.tensor([0.5, 0.25, 0.25]).double().expand(6, 3)
    soft = soft_acs_conv3d(volume, weight, view_weights, bias, **options)
    torch.testing.assert_close(soft, out, rtol=0, atol=0)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize(
    "stride,padding,dilation", [(1, 1, 1), (2, 1, 1), (1, 0, 1), (2, 2, 2), (1, 1, 2), (3, 3, 2)]
)
def test_dense_kernel_with_embedded_planes(backend, device, kernel_size, stride, padding, dilation):
    if dilation * (kernel_size - 1) + 1 > 7 + 2 * padding:
        padding = dilation * (kernel_size // 2)
    volume, weight, bias = integers(2, 3, 7, 8, 9), integers(7, 3, kernel_size, kernel_size), integers(7)
    split = (3, 2, 2)
    dense = torch.zeros(7, 3, kernel_size, kernel_size, kernel_size).double()
    centre = kernel_size // 2
    for view, channels in enumerate(torch.arange(7).split(split)):
        dense[channels] = dense[channels].index_copy(
            2 + view, torch.tensor([centre]), weight[channels].unsqueeze(2 + view)
        )
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    tensors = [t.to(device) for t in (volume, weight, bias)]
    out = acs_conv3d(*tensors, split=split, backend=backend, **options).cpu()
    torch.testing.assert_close(out, F.conv3d(volume, dense, bias, **options), rtol=0, atol=0)


def test_soft_is_the_weighted_sum_of_three_views():
    volume, weight, bias = (
        torch.randn(2, 3, 5, 6, 7).double(),
        torch.randn(4, 3, 3, 3).double(),
        torch.randn(4).double(),
    )
    view_weights = torch.rand(4, 3).double()
    views = [
        acs_conv3d(volume, weight, split=split, padding=1) for split in ((4, 0, 0), (0, 4, 0), (0, 0, 4))
    ]
    expected = (
        sum(v * view_weights[:, i, None, None, None] for i, v in enumerate(views)) + bias[:, None, None, None]
    )
    torch.testing.assert_close(soft_acs_conv3d(volume, weight, view_weights, bias, padding=1), expected)
