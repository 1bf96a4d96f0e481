"""Converters: what is refused, and what the errors say."""

import pytest
import torch
import torch.nn.functional as F
from acsconv.converters import (
    ACSConverter,
    Conv2_5dConverter,
    Conv3dConverter,
    ConversionError,
    convert,
)
from library.small_networks import Call, Positions, volume_of
from numerics import relative_error
from torch import nn


def test_one_error_names_all_and_changes_nothing():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Sequential(Positions(), nn.Unfold(2)),
        nn.LayerNorm((6, 8, 8)),
        nn.Conv2d(6, 6, (3, 1)),
        nn.LSTM(6, 6),
    )
    before = [type(module) for module in net.modules()]
    with pytest.raises(ConversionError) as error:
        ACSConverter(net)
    for part in (
        "5 parts",
        "1.0 (Positions): pos_embed [1, 49, 6]",
        "1.1 (Unfold)",
        "2 (LayerNorm)",
        "3 (Conv2d)",
        "4 (LSTM)",
    ):
        assert part in str(error.value)
    assert [type(module) for module in net.modules()] == before


@pytest.mark.parametrize(
    "wrap,message",
    [
        (lambda net: nn.DataParallel(net), "made parallel"),
        (lambda net: torch.compile(net), "compiled"),
        (lambda net: torch.jit.trace(net, torch.rand(1, 3, 8, 8)), "scripted"),
        (lambda net: convert(net), r"1 part .* the network \(Sequential\): is converted already"),
        (lambda net: nn.Sequential(nn.LazyConv2d(3, 3)), "has no size yet"),
    ],
)
def test_wrapped_networks_are_refused(wrap, message):
    with pytest.raises(ConversionError, match=f"(?s){message}"):
        ACSConverter(wrap(nn.Sequential(nn.Conv2d(3, 3, 3))))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flip(2),
        lambda x: torch.flip(x, (3,)),
        lambda x: torch.roll(x, (1, 1), (2, 3)),
        lambda x: x.roll(1, 2),
        lambda x: x.cumsum(2),
        lambda x: torch.cumsum(x, dim=-1),
        lambda x: x.softmax(2),
        lambda x: F.softmax(x, dim=-1),
        lambda x: x.mean(2),
        lambda x: x.mean(dim=(1, 3)),
        lambda x: x.amax(3, keepdim=True),
        lambda x: torch.max(x, 2)[0],
        lambda x: x.max(dim=3).values,
        lambda x: x.sum(-1),
        lambda x: x.transpose(2, 3),
        lambda x: x.mT,
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: torch.cat([x, x], 2),
        lambda x: x.chunk(2, dim=3)[0],
        lambda x: torch.split(x, 2, -1)[0],
        lambda x: x[:, :, 0],
        lambda x: x[..., 0],
        lambda x: x[:, :, 3:7],
        lambda x: x[:, None, :, 1:],
        lambda x: x.select(2, 0),
        lambda x: x.narrow(3, 0, 2),
        lambda x: torch.rot90(x, 1, (2, 3)),
        lambda x: torch.fft.fft2(x).real,
        lambda x: F.grid_sample(x, torch.zeros(x.size(0), 4, 4, 2)),
        lambda x: F.unfold(x, 3),
        lambda x: x.unfold(2, 2, 2),
        lambda x: F.interpolate(x, size=(20, 20)),
        lambda x: F.max_pool2d(x.view(x.size(0), -1, x.size(2) // 2, 2 * x.size(3)), 2),
        lambda x: x.view(x.size(0), x.size(1), x.size(2) // 2, 2, x.size(3) // 2, 2).sum((3, 5)),
        lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
        lambda x: x.unbind(2)[0],
        lambda x: x.sort(dim=2).values,
        lambda x: x.argmax(3),
        lambda x: x.std(2),
        lambda x: F.normalize(x, dim=2),
        lambda x: torch.linalg.vector_norm(x, dim=-1),
        lambda x: x @ x.transpose(-1, -2),
        lambda x: torch.matmul(x, torch.ones(x.size(-1), 2)),
        lambda x: torch.einsum("bchw,bchv->bcwv", x, x),
        lambda x: (x @ x.mT) @ x,
        lambda x: F.linear(x, torch.ones(x.size(-1), x.size(-1))),
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: x[:, :, torch.arange(x.size(2))],
        lambda x: x.prod(2),
        lambda x: x.mean(axis=2),
        lambda x: x.mean(2, True),
        lambda x: x.diff(),
        lambda x: x.sort().values,
        lambda x: F.glu(x),
        lambda x: torch.fft.rfft(x).real,
        lambda x: x.topk(2, dim=2).values,
        lambda x: x.index_select(3, torch.tensor([0, 1])),
        lambda x: x[:, :, x.shape[2] // 2 :, x.shape[3] // 2 :],
        lambda x: x[:, :, : -(x.shape[2] // 2)],
        lambda x: torch.fft.rfftn(x).real,
        lambda x: torch.fft.irfftn(x),
        lambda x: torch.fft.fftn(x, dim=(2, 3)).real,
        lambda x: torch.fft.ifftn(x).real,
        lambda x: torch.fft.hfft(x),
        lambda x: torch.fft.ihfft(x).real,
        lambda x: torch.fft.fftshift(x),
        lambda x: torch.fft.ifftshift(x),
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.log_softmax(2),
        lambda x: torch.log_softmax(x, dim=-1),
        lambda x: torch.special.log_softmax(x, 3),
        lambda x: torch.special.softmax(x, 3),
        lambda x: torch.linalg.norm(x, dim=2),
        lambda x: torch.linalg.norm(x, 2, dim=(2, 3)),
        lambda x: torch.linalg.norm(x, dim=(-2, -1), ord="nuc"),
        lambda x: x.norm("nuc", (2, 3)),
        lambda x: F.cosine_similarity(x, x, dim=2),
        lambda x: F.cosine_similarity(x, x, -1),
        lambda x: F.gumbel_softmax(x),
        lambda x: F.gumbel_softmax(x, dim=2),
        lambda x: x.quantile(0.5, dim=2),
        lambda x: torch.quantile(x, 0.5, 3),
        lambda x: torch.nanquantile(x, 0.5, 2),
        lambda x: x.aminmax(dim=2).min,
        lambda x: x.mode().values,
        lambda x: torch.mode(x, 2).values,
        lambda x: x.nanmedian(2).values,
        lambda x: torch.count_nonzero(x, 2),
        lambda x: F.rms_norm(x, x.shape[-1:]),
        lambda x: torch.take_along_dim(x, x.argsort(1), 2),
        lambda x: x.scatter(2, x.argsort(1), 0.0),
        lambda x: x.scatter_add(3, x.argsort(1) % 3, x),
        lambda x: x.clone().scatter_(2, x.argsort(1), 0.0),
        lambda x: torch.scatter_reduce(x, 2, x.argsort(1), x, "sum"),
        lambda x: x.chunk(chunks=2, dim=3)[0],
        lambda x: torch.tensor_split(x, sections=2, dim=2)[0],
        lambda x: x + torch.meshgrid(torch.arange(x.size(2)), torch.arange(x.size(3)), indexing="ij")[0],
    ],
)
def test_what_would_be_wrong_in_silence_is_refused(function):
    with pytest.raises(ConversionError):
        convert(Call(function))(torch.randn(2, 3, 8, 8, 8))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.chunk(chunks=2, dim=1)[0],
        lambda x: torch.tensor_split(x, sections=2, dim=1)[0],
        lambda x: torch.split(x, split_size_or_sections=1)[0],
        lambda x: x.log_softmax(1),
        lambda x: F.gumbel_softmax(x, dim=1).detach() * 0,
        lambda x: F.cosine_similarity(x, x + 1).unsqueeze(1),
        lambda x: x.scatter(1, x.argsort(1), 0.0),
        lambda x: x.quantile(0.5, dim=1, keepdim=True),
        lambda x: torch.linalg.norm(x, dim=1, keepdim=True),
    ],
)
def test_the_same_along_the_channels(function):
    volume = torch.randn(2, 4, 5, 6, 7)
    assert torch.equal(convert(Call(function))(volume), function(volume))


@pytest.mark.parametrize("order", [None, "fro"])
def test_the_norm_of_all_voxels(order):
    volume = torch.randn(2, 4, 5, 6, 7, dtype=torch.float64)
    norm = convert(Call(lambda x: torch.linalg.norm(x, order, dim=(2, 3))))(volume)
    torch.testing.assert_close(norm, torch.linalg.vector_norm(volume, dim=(2, 3, 4)))


def test_a_pooling_with_padding_is_none_of_the_whole_map():
    volume = torch.randn(2, 3, 1, 3, 3)
    out = convert(Call(lambda x: F.avg_pool2d(x, 3, 1, 1)))(volume)
    expected = F.avg_pool3d(F.pad(volume, (0, 0, 0, 0, 1, 1)), 3, 1, (0, 1, 1))
    assert out.shape == volume.shape
    assert relative_error(out, expected) < 1e-6
    out = convert(Call(lambda x: F.max_pool2d(x, 3, 1, 1)))(volume)
    assert torch.equal(out, F.max_pool3d(volume, 3, 1, 1))


@pytest.fixture
def operator():
    """An operator of another package, [N, C, H, W] -> the same."""
    library = torch.library.Library("acsconv_tests", "DEF")
    library.define("rows(Tensor x) -> Tensor")
    library.impl("rows", lambda x: x.cumsum(2), "CompositeImplicitAutograd")
    yield torch.ops.acsconv_tests.rows
    library._destroy()


def test_interpolation_of_tokens_keeps_its_arguments():
    def function(x):
        tokens = x.flatten(2)
        return F.interpolate(tokens, scale_factor=1.33, mode="linear", recompute_scale_factor=True)

    volume = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(convert(Call(function))(volume), function(volume))


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_output_sizes_of_transposed_convolutions(axis):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1)

        def forward(self, x):
            y = F.max_pool2d(x, 2)
            return self.up(y, x.shape[-2:]) + self.up(y, output_size=x.size())

    net, image = Up().double(), torch.randn(1, 2, 8, 10, dtype=torch.float64)
    out = convert(net, "2.5d", unsqueeze_axis=axis)(volume_of(image, 8, 5 + axis))
    assert relative_error(out, net(image).unsqueeze(axis).expand_as(out)) < 1e-12
    for to in ("acs", "3d"):
        assert convert(net, to)(torch.randn(1, 2, 4, 8, 10, dtype=torch.float64)).shape == (1, 2, 4, 8, 10)


def test_operators_of_other_packages_are_refused(operator):
    volume = torch.randn(2, 3, 8, 8, 8)
    for function in (operator, operator.default):
        with pytest.raises(
            ConversionError, match=r"torch\.ops\.acsconv_tests\.rows.*: an operator that is none"
        ):
            convert(Call(lambda x, function=function: function(x)))(volume)
        assert torch.equal(
            convert(Call(lambda x, function=function: x + function(x.mean((2, 3), True))))(volume),
            volume + volume.mean((2, 3, 4), True),
        )
    with pytest.raises(ConversionError, match="acsconv_tests"):
        convert(Call(operator), example=(1, 3, 8, 8, 8))
    assert torch.equal(convert(Call(torch.ops.aten.relu))(volume), volume.relu())


def test_deformable_convolutions_are_refused():
    deformable = type("DeformConv2d", (nn.Module,), {})
    with pytest.raises(ConversionError, match=r"0 \(DeformConv2d\): its offsets"):
        convert(nn.Sequential(deformable()))


def test_errors_in_forward_name_the_module():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(Call(lambda x: x.flip(2))))
    with pytest.raises(ConversionError, match=r"1\.0 \(Call\): flip"):
        convert(net)(torch.randn(1, 3, 8, 8, 8))


def test_a_batch_in_the_channels_is_refused():
    def merged(x):
        batch, channels, *size = x.shape
        weight = torch.ones(batch * 3, channels, 3, 3)
        return (
            F.conv2d(x.reshape(1, batch * channels, *size), weight, groups=batch).view(batch, 3, -1).mean(2)
        )

    with pytest.raises(ConversionError, match="batch was moved"):
        convert(Call(merged))(torch.randn(2, 3, 8, 8, 8))


def test_ambiguous_sizes_are_refused():
    def clash(x):
        y = F.max_pool2d(x, 2)  # 2 x 8 x 4 folds to 16 x 4 ...
        z = F.adaptive_avg_pool2d(x, 4)  # ... and so does 4 x 4 x 4
        return F.max_pool2d(y, 2), z

    with pytest.raises(ConversionError, match="two volumes"):
        convert(Call(clash))(torch.randn(1, 1, 4, 16, 8))


def test_sizes_that_no_whole_factor_gives_are_refused():
    net = convert(Call(lambda x: F.interpolate(x, size=[n // 2 for n in x.shape[2:]])))
    assert net(torch.randn(1, 1, 6, 4, 4)).shape == (1, 1, 3, 2, 2)
    with pytest.raises(ConversionError, match=r"size \(6, 2\)"):
        net(torch.randn(1, 1, 3, 4, 4))


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        convert("resnet18")
    with pytest.raises(ValueError, match="to: expected one of 'acs'"):
        convert(nn.Conv2d(1, 1, 1), "asc")
    with pytest.raises(ValueError, match="unsqueeze_axis: expected -3, -2 or -1, got 2"):
        Conv2_5dConverter(nn.Conv2d(1, 1, 1), unsqueeze_axis=2)
    with pytest.raises(ValueError, match="i3d_repeat_axis"):
        Conv3dConverter(nn.Conv2d(1, 1, 1), i3d_repeat_axis=0)
    with pytest.raises(ValueError, match="to: expected one of 'acs'"):
        convert(nn.Conv2d(1, 1, 1), ["acs"])
    for skip in (5, [5]):
        with pytest.raises(TypeError, match=r"skip: expected paths"):
            convert(nn.Conv2d(1, 1, 1), skip=skip)
    with pytest.raises(TypeError, match="example: expected a size"):
        convert(nn.Conv2d(1, 1, 1), example=5)
    with pytest.raises(TypeError, match=r"to: <lambda> returned no torch\.nn\.Module for 0, but int"):
        convert(nn.Sequential(nn.Conv2d(1, 1, 1)), lambda conv: 5)
    with pytest.raises(ValueError, match="no module of this network is called 'head'"):
        convert(nn.Conv2d(1, 1, 1), skip="head")
