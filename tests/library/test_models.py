"""The native networks: parameters and outputs of acsconv 0.1.1's, variants, and a U-Net around any encoder."""

import copy
import gzip
import importlib.util
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from acsconv import models
from acsconv.converters import ACSConverter
from acsconv.models import ACSUNet, EncoderDecoder, convnext, densenet, resnet, vgg
from acsconv.operators import ACSConv, Conv2_5d, SoftACSConv
from torch import nn

_spec = importlib.util.spec_from_file_location(
    "make_state_dicts", Path(__file__).with_name("make_state_dicts.py")
)
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from vision import prepare_torchvision  # noqa: E402

stored = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stored)


@pytest.fixture(scope="module")
def of_0_1_1():
    return json.loads(gzip.decompress(stored.FILE.read_bytes()))


@pytest.mark.parametrize("name", stored.NETWORKS)
def test_parameters_and_outputs_are_those_of_0_1_1(name, of_0_1_1):
    network = stored.build("acsconv", name)
    assert stored.shapes(network) == of_0_1_1[name]["shapes"]
    samples = torch.tensor(stored.samples(network, name), dtype=torch.float64)
    expected = torch.tensor(of_0_1_1[name]["samples"], dtype=torch.float64)
    assert expected.std() > 0.01 * expected.abs().max()
    torch.testing.assert_close(samples, expected, rtol=1e-9, atol=1e-12)


#: Parameters of torchvision's networks without their classifiers (and DenseNet's last norm), as published.
PARAMETERS = {
    resnet.resnet18: 11689512 - 513000,
    resnet.resnet34: 21797672 - 513000,
    resnet.resnet50: 25557032 - 2049000,
    resnet.resnet101: 44549160 - 2049000,
    resnet.resnet152: 60192808 - 2049000,
    densenet.densenet121: 7978856 - 1025000 - 2 * 1024,
    densenet.densenet161: 28681000 - 2209000 - 2 * 2208,
    densenet.densenet169: 14149480 - 1665000 - 2 * 1664,
    densenet.densenet201: 20013928 - 1921000 - 2 * 1920,
    vgg.vgg11: 132868840 - 123642856,
    vgg.vgg13: 133053736 - 123642856,
    vgg.vgg16: 138365992 - 123642856,
    vgg.vgg19: 143678248 - 123642856,
    convnext.convnext_tiny: 28589128,
    convnext.convnext_small: 50223688,
    convnext.convnext_base: 88591464,
    convnext.convnext_large: 197767336,
}


@pytest.mark.parametrize("build", PARAMETERS, ids=lambda build: build.__name__)
def test_every_depth_has_the_parameters_of_the_2d_network(build):
    with torch.device("meta"):
        network = build()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[build]


SMALL = {
    "resnet": (lambda **o: resnet.FCNResNet(None, 2, "resnet10", **o), 5),
    "resnet-low": (lambda **o: resnet.FCNResNet(None, 2, "resnet10", high_resolution=False, **o), 17),
    "resnet-cls": (lambda **o: resnet.ClsResNet(None, 2, "resnet50", high_resolution=False, **o), 9),
    "densenet": (lambda **o: densenet.FCNDenseNet(None, 2, block_config=(1, 2, 1, 2), **o), 9),
    "densenet-low": (
        lambda **o: densenet.ClsDenseNet(None, 2, block_config=(1, 2, 1, 2), high_resolution=False, **o),
        33,
    ),
    "vgg": (lambda **o: vgg.FCNVGG(None, 2, "vgg11", **o), 5),
    "vgg-low": (lambda **o: vgg.ClsVGG(None, 2, "vgg11", high_resolution=False, **o), 16),
    "convnext": (
        lambda **o: convnext.FCNConvNeXt(None, 2, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), **o),
        32,
    ),
    "convnext-cls": (
        lambda **o: convnext.ClsConvNeXt(
            None, 2, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), drop_path_rate=0.5, **o
        ),
        32,
    ),
    "unet": (lambda **o: ACSUNet(2, **o), 8),
}

KINDS = {"acs": ACSConv, "soft": SoftACSConv, "mean": SoftACSConv, "2.5d": Conv2_5d, "3d": nn.Conv3d}


VARIANTS = [(name, "acs", 1) for name in SMALL]
VARIANTS += [
    (name, conv, in_channels)
    for name in ("resnet", "densenet", "convnext", "unet")
    for conv, in_channels in (("soft", 3), ("mean", 2), ("2.5d", 1), ("3d", 4))
]


@pytest.mark.parametrize("name,conv,in_channels", VARIANTS)
def test_variants_train(name, conv, in_channels):
    build, edge = SMALL[name]
    network = build(conv=conv, in_channels=in_channels)
    layers = [m for m in network.modules() if type(m) in KINDS.values()]
    assert layers
    assert {type(layer) for layer in layers} == {KINDS[conv]}
    if name != "convnext-cls":  # there a sample's whole path may be dropped
        network.train()
    volume = torch.randn(2, in_channels, edge, edge, edge)
    out = network(volume)
    assert out.shape == (
        (2, 2) if "cls" in name or name in ("densenet-low", "vgg-low") else (2, 2, *volume.shape[2:])
    )
    out.square().mean().backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


def test_the_variants_share_2d_checkpoints():
    state = resnet.resnet10().state_dict()
    for conv in ("mean", "soft"):
        result = resnet.resnet10(conv=conv).load_state_dict(state, strict=False)
        assert result.unexpected_keys == []
        assert {key.rpartition(".")[2] for key in result.missing_keys} <= {"soft_w_core"}


def test_a_class_in_place_of_a_name():
    network = resnet.resnet10(conv=lambda *a, **o: Conv2_5d(*a, unsqueeze_axis=-1, **o))
    assert network.conv1.weight.shape == (64, 3, 7, 7, 1)


def test_stochastic_depth_leaves_out_whole_samples():
    block = convnext.Block(4, drop_path=0.75, layer_scale_init_value=1.0)
    volume = torch.randn(64, 4, 3, 3, 3)
    path = block.eval()(volume) - volume
    trained = block.train()(volume) - volume
    kept = trained.flatten(1).abs().amax(1) > 0
    assert 4 < kept.sum() < 32
    torch.testing.assert_close(trained[kept], path[kept] / 0.25)


@pytest.mark.parametrize(
    "call,text",
    [
        (
            lambda: resnet.resnet18(conv="1d"),
            "conv: expected one of 'acs', 'soft', 'mean', '2.5d', '3d' or a class",
        ),
        (lambda: resnet.resnet18(shortcut="C"), "shortcut: expected 'A' or 'B', got 'C'"),
        (lambda: resnet.FCNResNet(False, 2, "vgg16"), "backbone: expected one of 'resnet10'"),
        (lambda: vgg.ClsVGG(False, 2, "resnet18"), "backbone: expected one of 'vgg11'"),
        (lambda: convnext.LayerNorm(4, data_format="first"), "data_format: expected 'channels_last'"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_nothing_is_printed(capsys):
    resnet.resnet10()
    vgg.vgg11()
    assert capsys.readouterr() == ("", "")


# ---- EncoderDecoder --------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """A classifier in the manner of many: a stem, stages, a pooling, a linear layer."""

    def __init__(self, layer=ACSConv):
        super().__init__()
        self.stem = nn.Sequential(layer(2, 4, kernel_size=3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.relu = nn.ReLU()
        self.stage1 = layer(4, 6, kernel_size=3, stride=2, padding=1)
        self.stage2 = layer(6, 8, kernel_size=3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool3d((1, 7, 7))
        self.fc = nn.Linear(8 * 49, 3)

    def forward(self, x):
        x = self.relu(self.stage1(self.stem(x)))
        return self.fc(self.pool(self.relu(self.stage2(x))).flatten(1))


def test_a_unet_finds_the_features_of_a_classifier():
    network = EncoderDecoder(Pyramid(), 5, (16, 8), size=(32, 32, 32))
    # `relu` runs twice, so its inputs are taken; the pooling's 7x7 is no resolution of the network's.
    assert network.taps == ["stem", "stage1", "stage2"]
    assert network.feature_channels == [4, 6, 8]
    volume = torch.randn(2, 2, 21, 16, 19)
    out = network(volume)
    assert out.shape == (2, 5, 21, 16, 19)
    out.sum().backward()
    used = {name for name, p in network.named_parameters() if p.grad is not None}
    assert {name for name, _ in network.named_parameters()} - used == {"encoder.fc.weight", "encoder.fc.bias"}
    assert all(hook.output is None for hook in network._hooks)


class Stage(nn.Sequential):
    """As a bottleneck: the stride comes behind a layer of the resolution before."""

    def __init__(self, inputs, outputs):
        super().__init__(nn.Conv3d(inputs, inputs, 1), nn.Conv3d(inputs, outputs, 3, stride=2, padding=1))


def test_a_unet_prefers_stages_to_the_layers_in_them():
    network = EncoderDecoder(nn.Sequential(Stage(2, 4), Stage(4, 8), nn.AdaptiveAvgPool3d(1)), 5)
    assert network.taps == ["0", "1"]


CONVERTED = {
    "resnet50": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "vgg11_bn": ["features.6", "features.13", "features.20", "features.27", "features"],
    "densenet121": ["features.relu0", *(f"features.denseblock{i}" for i in (1, 2, 3)), "features"],
    "mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features"],
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_unet_around_a_converted_network(name):
    prepare_torchvision()
    encoder = pytest.importorskip("torchvision").models.get_model(name)
    network = EncoderDecoder(ACSConverter(encoder), 2, (16, 8))
    assert network.taps == CONVERTED[name]
    volume = torch.randn(1, 3, 64, 32, 64)
    with torch.no_grad():
        out = network.eval()(volume)
        assert out.shape == (1, 2, 64, 32, 64)
        torch.testing.assert_close(copy.deepcopy(network)(volume), out)
    state = network.state_dict()
    assert {key.removeprefix("encoder.") for key in state if key.startswith("encoder.")} == set(
        encoder.state_dict()
    )


def test_a_unet_around_an_encoder_of_smp_trains():
    prepare_torchvision()
    smp = pytest.importorskip("segmentation_models_pytorch")
    encoder = smp.encoders.get_encoder("resnet18", in_channels=2, weights=None)
    network = EncoderDecoder(ACSConverter(encoder), 2, (16, 8))
    assert network.feature_channels == [64, 64, 128, 256, 512]
    volume, target = torch.randn(2, 2, 32, 32, 32), torch.randint(0, 2, (2, 32, 32, 32))
    nn.functional.cross_entropy(network(volume), target).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_skips_reach_the_decoder():
    network = EncoderDecoder(Pyramid(), 5, size=(32, 32, 32)).eval()
    volume = torch.randn(1, 2, 16, 16, 16)
    expected = network(volume)
    handle = network.encoder.stem.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(network(volume), expected)
    handle.remove()
    with torch.no_grad():
        network.decoder[-2].convolutions[0].weight[:, -4:] = 0  # those of the finest skip
        assert not torch.allclose(network(volume), expected)


def test_a_unet_of_named_modules_and_of_other_convolutions():
    network = EncoderDecoder(Pyramid(), 5, taps=["stage2", "stem"], conv="3d", size=(32, 32, 32))
    assert network.taps == ["stem", "stage2"]
    assert isinstance(network.head, nn.Conv3d)
    assert network(torch.randn(1, 2, 16, 16, 16)).shape == (1, 5, 16, 16, 16)


@pytest.mark.parametrize("high_resolution", [True, False])
def test_a_unet_takes_the_features_that_an_encoder_returns(high_resolution):
    encoder = resnet.resnet10(in_channels=1, high_resolution=high_resolution)
    network = EncoderDecoder(encoder, 2, (16, 8, 4), size=(32, 32, 32))
    assert network.taps == []
    assert network.feature_channels == [64, 128, 512]
    assert len(network.decoder) == 2 + (not high_resolution)
    assert network.eval()(torch.randn(1, 1, 16, 12, 20)).shape == (1, 2, 16, 12, 20)


def test_placeholders_and_the_input_itself_are_no_features():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(2, 4, 3, stride=2, padding=1)

        def forward(self, x):
            return [x, x.new_empty(x.shape[0], 0, *x.shape[2:]), self.conv(x)]

    assert EncoderDecoder(Encoder(), 2).feature_channels == [4]


def test_a_unet_leaves_the_encoder_as_it_was():
    encoder = Pyramid()
    encoder.stem.eval()
    before = {name: module.training for name, module in encoder.named_modules()}
    network = EncoderDecoder(encoder, 5)
    assert network.encoder is encoder
    assert {name: module.training for name, module in encoder.named_modules()} == before
    assert sum(len(module._forward_hooks) for module in encoder.modules()) == 3


def test_copies_of_a_unet():
    network = EncoderDecoder(Pyramid(), 5).eval()
    volume = torch.randn(1, 2, 16, 16, 16)
    expected = network(volume)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(volume), expected)
    with torch.no_grad():
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(volume), expected)


def test_errors_of_a_unet():
    with pytest.raises(ValueError, match="taps: the encoder has no module stage9"):
        EncoderDecoder(Pyramid(), 5, taps=["stem", "stage9"])
    with pytest.raises(
        ValueError, match=re.escape("taps: relu, fc put out no [N, C, D, H, W], or run more than once")
    ):
        EncoderDecoder(Pyramid(), 5, taps=["stem", "relu", "fc"])
    with pytest.raises(ValueError, match="encoder: found no features"):
        EncoderDecoder(nn.Sequential(nn.Conv3d(2, 2, 3, padding=1)), 5)


def test_the_modules_of_0_1_1_import_alone():
    for module in ("resnet", "densenet", "vgg", "convnext", "acsunet"):
        assert hasattr(models, module)
