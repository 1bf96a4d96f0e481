"""Weights from elsewhere: names, files and state_dicts, 2D and 3D, other numbers of input channels, errors."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from acsconv.models import convnext, densenet, resnet, vgg
from acsconv.models.pretrained import adapt_input_channels, load_pretrained, unwrap
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


def like(network, seed=1):
    """A state_dict of the network's names and shapes with other values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }


def holds(network, state):
    own = network.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if "num_batches" not in key)


@pytest.fixture(scope="module")
def state():
    """As torchvision's: the 2D names and shapes with the classifier."""
    return like(resnet.resnet10()) | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}


def without_head(state):
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet10"},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{key}": value for key, value in s.items()},
        lambda s: {
            "net": {f"module.backbone.{k}": v for k, v in s.items()} | {"module.fc.bias": torch.ones(2)}
        },
        lambda s: (
            {f"encoder.{k}": v for k, v in s.items()} | {"decoder.conv1.weight": torch.ones(2, 2, 1, 1)}
        ),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_files_and_state_dicts(wrap, from_file, state, tmp_path):
    source = wrap(state)
    if from_file:
        torch.save(source, tmp_path / "weights.pth")
        source = tmp_path / "weights.pth"
    assert holds(resnet.resnet10(source), without_head(state))
    assert holds(
        resnet.ClsResNet(str(source) if from_file else source, 2, "resnet10").backbone, without_head(state)
    )


def test_nothing_is_loaded_without_a_source():
    for source in (None, False):
        torch.manual_seed(0)
        network = resnet.resnet10(source)
        torch.manual_seed(0)
        assert holds(network, resnet.resnet10().state_dict())


@pytest.mark.parametrize("in_channels", [1, 2, 3, 5])
@pytest.mark.parametrize("how", ["sum", "mean"])
def test_input_channels(in_channels, how, state):
    network = resnet.resnet10(state, in_channels=in_channels, input_weights=how)
    weight = state["conv1.weight"]
    assert network.conv1.weight.shape == (64, in_channels, 7, 7)
    if in_channels == 3:
        assert torch.equal(network.conv1.weight, weight)
        return
    total = weight.sum(1) if how == "sum" else weight.mean(1) * in_channels
    torch.testing.assert_close(network.conv1.weight.sum(1), total)
    assert torch.equal(network.conv1.weight[:, 0], network.conv1.weight[:, -1])
    if how == "sum":  # a grey volume gives what it gave with its channel repeated three times
        volume = torch.randn(1, 1, 4, 5, 6)
        three = resnet.resnet10(state)
        torch.testing.assert_close(
            network.conv1(volume.expand(-1, in_channels, -1, -1, -1)),
            three.conv1(volume.expand(-1, 3, -1, -1, -1)),
        )


def test_2d_kernels_in_every_variant(state):
    for conv, expected in (
        ("acs", state["conv1.weight"]),
        ("soft", state["conv1.weight"]),
        ("2.5d", state["conv1.weight"].unsqueeze(2)),
        ("3d", state["conv1.weight"].unsqueeze(2).expand(-1, -1, 7, -1, -1) / 7),
    ):
        network = resnet.resnet10(state, conv=conv)
        torch.testing.assert_close(network.conv1.weight, expected, rtol=0, atol=0)
        one = network.layer2[0].downsample[0].weight
        torch.testing.assert_close(
            one.flatten(1), state["layer2.0.downsample.0.weight"].flatten(1), rtol=0, atol=0
        )


def published(depth, in_channels, head, shortcut):
    """The names and shapes of a published 3D ResNet: cubic kernels, DataParallel's prefix, shortcuts of type A or B."""
    options = {"conv": "3d", "in_channels": in_channels, "shortcut": shortcut}
    state = like(getattr(resnet, f"resnet{depth}")(**options)) | head
    return {"state_dict": {f"module.{key}": value for key, value in state.items()}}


@pytest.mark.parametrize("depth,shortcut", [(10, "B"), (18, "A"), (50, "B")])
def test_medicalnet_files(depth, shortcut, tmp_path):
    """Tencent/MedicalNet: pretrain/resnet_*_23dataset.pth, one input channel, the head of segmentation perhaps."""
    head = {"conv_seg.0.weight": torch.ones(512, 32, 2, 2, 2)}
    source = published(depth, 1, head, shortcut)
    assert source["state_dict"]["module.conv1.weight"].shape == (64, 1, 7, 7, 7)
    assert any("downsample" in key for key in source["state_dict"]) == (shortcut == "B")
    torch.save(source, tmp_path / "resnet.pth")
    network = resnet.FCNResNet(
        tmp_path / "resnet.pth", 2, f"resnet{depth}", conv="3d", in_channels=1, shortcut=shortcut
    )
    for key, value in source["state_dict"].items():
        if "conv_seg" not in key and "num_batches" not in key:
            assert torch.equal(network.backbone.state_dict()[key.removeprefix("module.")], value)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_kinetics_files(prefix, tmp_path):
    """kenshohara/3D-ResNets-PyTorch: three input channels, a classifier of the videos' classes."""
    source = published(18, 3, {"fc.weight": torch.ones(400, 512), "fc.bias": torch.ones(400)}, "A")
    source = {key.replace("module.", prefix): value for key, value in source["state_dict"].items()}
    torch.save(
        {"epoch": 200, "arch": "resnet-18", "state_dict": source, "optimizer": {"state": {}}},
        tmp_path / "r.pth",
    )
    network = resnet.ClsResNet(
        tmp_path / "r.pth", 2, conv="3d", in_channels=1, shortcut="A", high_resolution=False
    )
    assert torch.equal(network.backbone.layer4[1].conv2.weight, source[f"{prefix}layer4.1.conv2.weight"])
    expected = source[f"{prefix}conv1.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(network.backbone.conv1.weight, expected)
    assert network(torch.randn(2, 1, 16, 16, 16)).shape == (2, 2)


def test_shortcut_a_is_a_strided_identity():
    block = resnet.resnet10(shortcut="A").layer2[0]
    volume = torch.randn(1, 64, 5, 4, 3)
    out = block.downsample(volume)
    assert torch.equal(out[:, :64], volume[..., ::2, ::2, ::2])
    assert out[:, 64:].abs().max() == 0
    assert out.shape == (1, 128, 3, 2, 2)


def test_an_error_lists_all_and_changes_nothing(state):
    network = resnet.resnet10()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    wrong = without_head(state)
    wrong["extra.weight"] = wrong.pop("layer1.0.conv1.weight")
    wrong["layer1.0.bn1.weight"] = torch.ones(7)
    with pytest.raises(ValueError) as caught:
        load_pretrained(network, wrong, "resnet10")
    text = str(caught.value)
    for line in (
        "pretrained: 3 of 72 entries do not fit ResNet",
        "unknown: extra.weight [64, 64, 3, 3]",
        "other shape: layer1.0.bn1.weight is [7], needed [64]",
        "missing: layer1.0.conv1.weight [64, 64, 3, 3]",
    ):
        assert line in text
    assert holds(network, before)


@pytest.mark.parametrize(
    "call,error,text",
    [
        (lambda: resnet.resnet10(like(resnet.resnet10(conv="3d"))), ValueError, "3D kernels need conv='3d'"),
        (
            lambda: resnet.resnet18(like(resnet.resnet18(conv="3d", shortcut="A")), conv="3d"),
            ValueError,
            "missing: layer2.0.downsample.0.weight [128, 64, 1, 1, 1]",
        ),
        (
            lambda: resnet.resnet10(3.5),
            TypeError,
            "expected a bool, a name, a path or a state_dict, got float",
        ),
        (lambda: resnet.resnet10({"epoch": 3}), ValueError, "expected a state_dict, or a mapping with one"),
        (
            lambda: resnet.resnet10(input_weights="typo"),
            ValueError,
            "input_weights: expected 'sum' or 'mean', got 'typo'",
        ),
        (
            lambda: resnet.resnet10(like(resnet.resnet10()), in_channels=1, input_weights="max"),
            ValueError,
            "input_weights: expected 'sum' or 'mean', got 'max'",
        ),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_unwrap_and_adapt_alone():
    tensors = {"conv.weight": torch.rand(4, 3, 3, 3)}
    assert unwrap({"state_dict": {"module.conv.weight": tensors["conv.weight"]}}).keys() == tensors.keys()
    weight = tensors["conv.weight"]
    torch.testing.assert_close(adapt_input_channels(weight, 1), weight.sum(1, keepdim=True))
    torch.testing.assert_close(adapt_input_channels(weight, 1, "mean"), weight.mean(1, keepdim=True))


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def libraries(monkeypatch, state):
    """torchvision, timm and segmentation_models_pytorch as far as their names go, without weights to download."""
    asked = []

    class Weights(dict):
        def __missing__(self, key):
            if key not in ("DEFAULT", "IMAGENET1K_V1"):
                raise KeyError(key)
            return types.SimpleNamespace(
                get_state_dict=lambda progress: asked.append(f"torchvision {key}") or state
            )

    def get_weights(name):
        if name not in ("resnet10", "ResNet10_Weights.DEFAULT"):
            raise ValueError(name)
        return Weights() if name == "resnet10" else Weights()["DEFAULT"]

    def network(name, **options):
        asked.append(f"{name} {options}")
        return types.SimpleNamespace(state_dict=lambda: state)

    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.ModuleType("torchvision.models")
    torchvision.models.get_model_weights = torchvision.models.get_weight = get_weights
    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name.startswith("resnet10t")
    timm.create_model = network
    smp = types.ModuleType("segmentation_models_pytorch")
    smp.encoders = types.SimpleNamespace(get_encoder_names=lambda: ["se-resnet10"], get_encoder=network)
    for module in (torchvision, torchvision.models, timm, smp):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


@pytest.mark.parametrize(
    "source,asked",
    [
        (True, "torchvision IMAGENET1K_V1"),
        ("torchvision:resnet10", "torchvision DEFAULT"),
        ("resnet10", "torchvision DEFAULT"),
        ("torchvision:ResNet10_Weights.DEFAULT", "torchvision DEFAULT"),
        ("timm:resnet10t.a1_in1k", "resnet10t.a1_in1k {'pretrained': True}"),
        ("resnet10t", "resnet10t {'pretrained': True}"),
        ("smp:se-resnet10", "se-resnet10 {'weights': 'imagenet'}"),
        ("smp:se-resnet10:swsl", "se-resnet10 {'weights': 'swsl'}"),
        ("se-resnet10", "se-resnet10 {'weights': 'imagenet'}"),
    ],
)
def test_names(source, asked, libraries, state):
    assert holds(resnet.resnet10(source), without_head(state))
    assert libraries == [asked]


def test_unknown_names(libraries, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    text = (
        "pretrained: 'resnext' is no file, and no library's name: torchvision has no weights 'resnext'; timm cannot be "
        "imported (import of timm halted; None in sys.modules); segmentation_models_pytorch has no encoder 'resnext'"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        resnet.resnet10("resnext")
    with pytest.raises(ValueError, match="timm cannot be imported"):
        convnext.convnext_tiny(True, in_22k=True)


def installed(name):
    """The real library, skipping the test with the reason if there is none."""
    from vision import prepare_torchvision

    prepare_torchvision()
    return pytest.importorskip(name)


REAL = {
    "resnet18": (resnet.resnet18, "resnet18"),
    "resnet50": (resnet.resnet50, "resnet50"),
    "densenet121": (densenet.densenet121, "densenet121"),
    "vgg11": (vgg.vgg11, "vgg11_bn"),
    "vgg16": (vgg.vgg16, "vgg16_bn"),
    "convnext_tiny": (convnext.convnext_tiny, "convnext_tiny"),
}


@pytest.mark.parametrize("name", REAL)
def test_what_the_libraries_call_their_parameters(name):
    """Nothing is missing, unknown or of another shape; values are for the next test."""
    models = installed("torchvision").models
    timm, smp = installed("timm"), installed("segmentation_models_pytorch")
    build, theirs = REAL[name]
    with torch.device("meta"):
        build(models.get_model(theirs).state_dict())
        build(timm.create_model(theirs).state_dict())
        if name != "convnext_tiny":  # which smp takes from timm
            build(smp.encoders.get_encoder(theirs, weights=None).state_dict())


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg11", "convnext_tiny"])
def test_a_volume_of_one_repeated_image_gives_the_2d_network_s_features(name):
    """In 2.5D and with torchvision's strides, every slice is an image: so weights and layers are in their places."""
    build, theirs = REAL[name]
    image_network = installed("torchvision").models.get_model(theirs).eval()
    for module in image_network.modules():  # initial statistics and layer scales would hide much
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if hasattr(module, "layer_scale"):
            nn.init.ones_(module.layer_scale)
    image = torch.randn(1, 3, 64, 64)
    volume = image.unsqueeze(2).expand(-1, -1, 64, -1, -1)
    options = {} if name == "convnext_tiny" else {"high_resolution": False}
    network = build(image_network.state_dict(), conv="2.5d", **options).eval()
    with torch.no_grad():
        out = network(volume)
        if name == "convnext_tiny":
            torch.testing.assert_close(out, image_network(image), rtol=1e-4, atol=1e-4)
            return
        # Without torchvision's pooling and classifier; without DenseNet's last norm, VGG's last pooling.
        children = list(image_network.children())[:-2] if name == "resnet18" else image_network.features[:-1]
        expected = nn.Sequential(*children)(image)
        assert expected.std() > 0.01
        for one in out[0].unbind(2):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
