"""Where acsconv 0.1.1 contradicts itself, refuses or crashes: one test a row of the table in docs/differences.md."""

import pytest
import torch
import torch.nn.functional as F
from acsconv.operators import ACSConv

from acsconv_cuda import acs_conv3d

X = torch.randn(1, 2, 8, 8, 8, dtype=torch.float64)


def axial(volume, weight, **options):
    """The axial view alone."""
    return acs_conv3d(volume, weight, split=(weight.shape[0], 0, 0), **options)


@pytest.mark.parametrize("depth", [6, 7, 8, 9])
@pytest.mark.parametrize("kernel_size,padding", [(2, 0), (4, 1)])
def test_even_kernels_that_halve_sample_even_positions(depth, kernel_size, padding):
    """0.1.1: positions 2o on even sizes, 2o + 1 on odd ones."""
    volume, weight = (
        torch.randn(1, 2, depth, 8, 8).double(),
        torch.randn(3, 2, kernel_size, kernel_size).double(),
    )
    out = axial(volume, weight, stride=2, padding=padding)
    for position, one in enumerate(out.unbind(2)):
        expected = F.conv2d(volume[:, :, 2 * position], weight, stride=2, padding=padding)
        torch.testing.assert_close(one, expected)


def test_size_four_without_padding():
    """0.1.1: 2 * out == in by accident, so the axial part keeps depth 4 and the concatenation fails."""
    layer = ACSConv(2, 6, 3).double()
    out = layer(X[..., :4, :4, :4])
    assert out.shape == (1, 6, 2, 2, 2)
    expected = F.conv2d(X[:, :, 1, :4, :4], layer.weight[:2], layer.bias[:2])
    torch.testing.assert_close(out[:, :2, 0], expected)


def test_size_four_with_a_padded_one_by_one_kernel():
    """0.1.1: in=4, K=1, s=3, p=1 gives out=2, and the accidental branch samples positions 0, 3 instead of -1, 2."""
    weight = torch.randn(3, 2, 1, 1).double()
    out = axial(X[..., :4, :4, :4], weight, stride=3, padding=1)
    assert out.shape == (1, 3, 2, 2, 2)
    assert out[:, :, 0].abs().max() == 0
    torch.testing.assert_close(out[:, :, 1, 1, 1], F.conv2d(X[:, :, 2, 2:3, 2:3], weight)[..., 0, 0])


@pytest.mark.parametrize("stride,padding,dilation", [(1, 0, 2), (2, 2, 2), (1, 1, 3), (2, 0, 3)])
def test_dilated_kernels_are_centred(stride, padding, dilation):
    """0.1.1: the crop starts at K // 2 whatever the dilation. Centred: as the dense kernel with the plane inside."""
    weight = torch.randn(3, 2, 3, 3).double()
    dense = torch.zeros(3, 2, 3, 3, 3).double()
    dense[:, :, 1] = weight
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    torch.testing.assert_close(axial(X, weight, **options), F.conv3d(X, dense, **options))


@pytest.mark.parametrize("padding", [0, 2])
def test_depthwise_with_padding_that_is_not_same(padding):
    """0.1.1: crashes."""
    layer = ACSConv(6, 6, 3, padding=padding, groups=6).double()
    volume = torch.randn(1, 6, 8, 8, 8).double()
    one_by_one = [
        acs_conv3d(
            volume[:, c : c + 1],
            layer.weight[c : c + 1],
            split=[int(v == c // 2) for v in range(3)],
            padding=padding,
        )
        for c in range(6)
    ]
    torch.testing.assert_close(layer(volume), torch.cat(one_by_one, 1) + layer.bias[:, None, None, None])


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_between_one_and_depthwise(groups):
    """0.1.1: refused. Group and view are both read off the output channel."""
    layer = ACSConv(6, 12, 3, padding=1, groups=groups, acs_kernel_split=(5, 4, 3)).double()
    dense_in_groups = torch.zeros(12, 6, 3, 3).double()
    for channel in range(12):
        group = channel // (12 // groups)
        inputs = slice(group * (6 // groups), (group + 1) * (6 // groups))
        dense_in_groups[channel, inputs] = layer.weight[channel].detach()
    volume = torch.randn(1, 6, 8, 8, 8).double()
    expected = acs_conv3d(volume, dense_in_groups, layer.bias, split=(5, 4, 3), padding=1)
    torch.testing.assert_close(layer(volume), expected)


@pytest.mark.parametrize("kernel_size", [3, 4, (1, 7), (7, 1)])
def test_padding_same(kernel_size):
    """0.1.1: strings and rectangular kernels are refused."""
    layer = ACSConv(2, 6, kernel_size, padding="same").double()
    out = layer(X)
    assert out.shape == (1, 6, 8, 8, 8)
    axial_part = F.conv2d(X[:, :, 3], layer.weight[:2], layer.bias[:2], padding="same")
    torch.testing.assert_close(out[:, :2, 3], axial_part)


def test_padding_valid():
    layer = ACSConv(2, 6, 3, padding="valid").double()
    expected = acs_conv3d(X, layer.weight, layer.bias)
    torch.testing.assert_close(layer(X), expected)


@pytest.mark.parametrize("kernel_size,padding", [((1, 7), (0, 3)), ((7, 1), (3, 0)), ((3, 5), (1, 2))])
def test_rectangular_kernels(kernel_size, padding):
    layer = ACSConv(2, 6, kernel_size, padding=padding).double()
    assert layer.kernel_size == kernel_size
    out = layer(X)
    for view, (channels, thin) in enumerate(zip(torch.arange(6).split(2), (2, 3, 4), strict=True)):
        expected = F.conv2d(X.select(thin, 3), layer.weight[channels], layer.bias[channels], padding=padding)
        torch.testing.assert_close(out[:, channels].select(thin, 3), expected, msg=f"view {view}")


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "stride,padding,kernel_size", [(1, 1, 3), (2, 1, 3), (1, 2, 3), (1, "same", 4), (1, (0, 2), (1, 5))]
)
def test_padding_modes(mode, stride, padding, kernel_size):
    """0.1.1: reflect and replicate are zeros in silence, circular is refused."""
    layer = ACSConv(2, 6, kernel_size, stride=stride, padding=padding, padding_mode=mode).double()
    # Padded by hand, well beyond what is needed, the same positions are read: shifted by a multiple of the stride.
    shift = 4
    volume = F.pad(X, [shift] * 6, mode=mode)
    zeros = ACSConv(2, 6, kernel_size, stride=stride, padding=padding).double()
    zeros.load_state_dict(layer.state_dict())
    out = layer(X)
    first = shift // stride
    d, h, w = (slice(first, first + size) for size in out.shape[2:])
    torch.testing.assert_close(out, zeros(volume)[:, :, d, h, w])


def test_padding_mode_that_changes_the_thin_position():
    """Padding 2 with K=3: thin position o - 1, which with replicated borders reads the first slice, not zero."""
    layer = ACSConv(2, 3, 3, padding=2, padding_mode="replicate", acs_kernel_split=(3, 0, 0)).double()
    padded = F.pad(X[:, :, 0], [2] * 4, mode="replicate")
    expected = F.conv2d(padded, layer.weight, layer.bias)
    torch.testing.assert_close(layer(X)[:, :, 0], expected)
