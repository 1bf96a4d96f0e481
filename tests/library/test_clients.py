"""Programs that import acsconv 0.1.1 from our package instead: the calls that they make, in their order.

* MedMNIST's experiments (github.com/MedMNIST/experiments, ``MedMNIST3D/train_and_eval_pytorch.py``)
* GaNDLF (github.com/mlcommons/GaNDLF, ``models/modelBase.py`` and ``models/imagenet_unet.py``)
* the experiments of the paper and their descendants (github.com/M3DV/ACSConv, ``experiments``)
"""

import copy
import importlib
import io
import sys
from pathlib import Path

import pytest
import torch
from acsconv.converters import ACSConverter, Conv2_5dConverter, Conv3dConverter, SoftACSConverter
from torch import nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


def train_step(model, volume, target):
    """A step of Adam; it changes all parameters but those that the 2D network does not use, or behind dead ReLUs."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    model.train()
    optimizer.zero_grad()
    loss = nn.CrossEntropyLoss()(model(volume), target)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    changed = [
        not torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True)
    ]
    assert sum(changed) > 0.9 * len(changed)


def saved_and_loaded(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu")


# ---- MedMNIST --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block with functional activations and an empty ``shortcut`` where nothing changes."""

    def __init__(self, inputs, planes, stride, expansion):
        super().__init__()
        kernels = (3, 3) if expansion == 1 else (1, 3, 1)
        widths = [inputs, *[planes] * (len(kernels) - 1), planes * expansion]
        strides = (stride, 1) if expansion == 1 else (1, stride, 1)
        self.count = len(kernels)
        for i, (kernel, step) in enumerate(zip(kernels, strides)):
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, stride=step, padding=kernel // 2, bias=False)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != widths[-1]:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, widths[-1], 1, stride=stride, bias=False), nn.BatchNorm2d(widths[-1])
            )

    def forward(self, x):
        out = x
        for i in range(1, self.count + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            if i < self.count:
                out = F.relu(out)
        out += self.shortcut(x)
        return F.relu(out)


class MedMNISTResNet(nn.Module):
    """ResNet-18 or 50 for images of 28 pixels: a 3x3 stem, ``view`` before the linear layer."""

    def __init__(self, depth, in_channels, num_classes):
        super().__init__()
        blocks, expansion = {18: ((2, 2, 2, 2), 1), 50: ((3, 4, 6, 3), 4)}[depth]
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        for i, (planes, count) in enumerate(zip((64, 128, 256, 512), blocks)):
            stage = []
            for position in range(count):
                stage.append(Block(width, planes, 2 if i and not position else 1, expansion))
                width = planes * expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = self.avgpool(out)
        out = out.view(out.size(0), -1)
        return self.linear(out)


class _SynchronizedBatchNorm:
    """What replaces batch normalisation in these experiments has the arguments of the first such package."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True):
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine)


class SynchronizedBatchNorm2d(_SynchronizedBatchNorm, nn.BatchNorm2d):
    pass


class SynchronizedBatchNorm3d(_SynchronizedBatchNorm, nn.BatchNorm3d):
    pass


def model_to_syncbn(model):
    """As in the experiments: by the class's name, with its attributes as arguments, parameters kept by a state_dict."""
    state = model.state_dict()

    def replace(module):
        for name, child in module.named_children():
            kind = child.__class__.__name__
            if hasattr(nn, kind) and "batchnorm" in kind.lower():
                target = globals()["Synchronized" + kind]
                arguments = _SynchronizedBatchNorm.__init__.__code__.co_varnames[1:]
                setattr(module, name, target(**{k: getattr(child, k) for k in arguments if k != "__class__"}))
            else:
                replace(child)

    replace(model)
    model.load_state_dict(state)
    return model


MEDMNIST = {
    "ACSConv": ACSConverter,
    "Conv2_5d": Conv2_5dConverter,
    "Conv3d-i3d": lambda model: Conv3dConverter(model, i3d_repeat_axis=-3),
    "Conv3d": lambda model: Conv3dConverter(model, i3d_repeat_axis=None),
}


@pytest.mark.parametrize("conv", MEDMNIST)
@pytest.mark.parametrize("depth,in_channels", [(18, 1), (50, 3)])
def test_medmnist(depth, in_channels, conv):
    volume, target = torch.randn(2, in_channels, 8, 8, 8), torch.tensor([0, 3])

    model = model_to_syncbn(MEDMNIST[conv](MedMNISTResNet(depth, in_channels, 5)))
    model = model.to(torch.device("cpu"))
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
    assert norms
    assert all(isinstance(m, _SynchronizedBatchNorm) for m in norms)
    train_step(model, volume, target)

    model.eval()
    with torch.no_grad():
        expected = model(volume)
        scores = nn.Softmax(dim=1)(expected)
    assert scores.shape == (2, 5)

    checkpoint = saved_and_loaded({"net": model.state_dict()})
    again = model_to_syncbn(MEDMNIST[conv](MedMNISTResNet(depth, in_channels, 5)))
    again.load_state_dict(checkpoint["net"], strict=True)
    again.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(volume), expected)
        torch.testing.assert_close(copy.deepcopy(again)(volume), expected)


def test_what_one_repeated_slice_says_of_medmnist_s_network():
    """The conversion keeps the network: in 2.5D, all slices of a repeated image are that image."""
    flat = MedMNISTResNet(18, 1, 5).eval()
    image = torch.randn(2, 1, 8, 8)
    expected = flat(image)
    volume = image.unsqueeze(2).expand(-1, -1, 8, -1, -1)
    model = Conv2_5dConverter(copy.deepcopy(flat)).eval()
    torch.testing.assert_close(model(volume), expected, rtol=1e-4, atol=1e-5)


# ---- GaNDLF ----------------------------------------------------------------------------------------------------------


def gandlf_network(encoder_name, in_channels, classes, classification, attention=None):
    """An encoder, a decoder and a head of segmentation_models_pytorch, joined as GaNDLF joins them."""
    from vision import prepare_torchvision

    prepare_torchvision()
    pytest.importorskip("segmentation_models_pytorch")
    from segmentation_models_pytorch.base import ClassificationHead, SegmentationHead
    from segmentation_models_pytorch.base import initialization as init
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
    from segmentation_models_pytorch.encoders import get_encoder

    class Unet(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = get_encoder(encoder_name, in_channels=in_channels, depth=5, weights=None)
            channels = (64, 32, 16, 16, 16)
            if classification:
                self.segmentation_head = None
                self.classification_head = ClassificationHead(
                    self.encoder.out_channels[-1],
                    classes=classes,
                    pooling="avg",
                    dropout=0.2,
                    activation=None,
                )
                init.initialize_head(self.classification_head)
            else:
                self.decoder = UnetDecoder(
                    self.encoder.out_channels, channels, n_blocks=5, attention_type=attention
                )
                self.segmentation_head = SegmentationHead(
                    channels[-1], classes, activation=None, kernel_size=3
                )
                self.classification_head = None
                init.initialize_decoder(self.decoder)
                init.initialize_head(self.segmentation_head)
            self.name = f"u-{encoder_name}"

        def forward(self, x):
            features = self.encoder(x)
            if self.classification_head is None:
                return self.segmentation_head(self.decoder(features))
            return self.classification_head(features[-1])

    return Unet()


class GandlfModel(nn.Module):
    """GaNDLF's wrapper: it keeps ``Converter(model).model``."""

    def __init__(self, model, converter_type):
        super().__init__()
        converter = SoftACSConverter
        if converter_type == "acs":
            converter = ACSConverter
        elif converter_type == "conv3d":
            converter = Conv3dConverter
        self.converter = converter
        self.model = self.converter(model).model

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("converter_type", ["acs", "soft", "conv3d"])
@pytest.mark.parametrize(
    "encoder,classification,attention",
    [("resnet18", False, None), ("resnet18", True, None), ("mobilenet_v2", False, "scse")],
)
def test_gandlf(encoder, classification, attention, converter_type):
    def build():
        return GandlfModel(gandlf_network(encoder, 3, 4, classification, attention), converter_type)

    model = build()
    assert model.model.name == f"u-{encoder}"
    volume = torch.randn(2, 3, 32, 32, 32)
    target = torch.tensor([1, 3]) if classification else torch.randint(0, 4, (2, 32, 32, 32))
    train_step(model, volume, target)

    model.eval()
    with torch.no_grad():
        expected = model(volume)
        assert expected.shape == ((2, 4) if classification else (2, 4, 32, 32, 32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(volume).isfinite().all()
    checkpoint = saved_and_loaded({"epoch": 1, "model_state_dict": model.state_dict()})
    again = build()
    again.load_state_dict(checkpoint["model_state_dict"])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(volume), expected)


# ---- the paper's experiments and what grew out of them ---------------------------------------------------------------


class FlatFCN(nn.Module):
    """A 2D segmentation network as the experiments convert: a backbone, ``F.interpolate(scale_factor=2)``."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("conv1", nn.Conv2d(3, 8, 7, padding=3, bias=False))
        self.backbone.add_module("bn1", nn.BatchNorm2d(8))
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.classifier = nn.Sequential(nn.Conv2d(20, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))

    def forward(self, x):
        first = F.relu(self.backbone(x))
        deep = F.interpolate(self.down(first), scale_factor=2, mode="bilinear")
        return self.classifier(torch.cat([first, deep], dim=1))


def test_a_first_layer_of_three_dimensions_is_put_in_afterwards():
    """MedicalNet's weights: Conv3dConverter, then a first layer for one channel, then ``strict=False``."""
    model = model_to_syncbn(Conv3dConverter(FlatFCN(), i3d_repeat_axis=None))
    model.backbone.conv1 = nn.Conv3d(
        1, 8, kernel_size=(7, 7, 7), stride=(1, 1, 1), padding=(3, 3, 3), bias=False
    )
    weights = {
        "conv1.weight": torch.randn(8, 1, 7, 7, 7),
        "bn1.bias": torch.ones(8),
        "fc.weight": torch.ones(2),
    }
    keys = model.backbone.load_state_dict(weights, strict=False)
    assert keys.unexpected_keys == ["fc.weight"]
    assert torch.equal(model.backbone.conv1.weight, weights["conv1.weight"])
    train_step(model, torch.randn(2, 1, 8, 8, 8), torch.randint(0, 2, (2, 8, 8, 8)))


@pytest.mark.parametrize("converter", [ACSConverter, SoftACSConverter, Conv2_5dConverter, Conv3dConverter])
def test_networks_of_the_lidc_experiment(converter):
    model = model_to_syncbn(converter(FlatFCN()))
    train_step(model, torch.randn(2, 3, 8, 8, 8), torch.randint(0, 2, (2, 8, 8, 8)))
    with torch.no_grad():
        state = saved_and_loaded(model.state_dict())
        model.load_state_dict(state)
        assert model.eval()(torch.randn(1, 3, 8, 10, 12)).shape == (1, 2, 8, 10, 12)


@pytest.mark.parametrize(
    "path",
    [
        "converters.acsconv_converter.ACSConverter",
        "converters.soft_acsconv_converter.SoftACSConverter",
        "converters.conv2_5d_converter.Conv2_5dConverter",
        "converters.conv3d_converter.Conv3dConverter",
        "converters.base_converter.BaseConverter",
        "operators.acsconv.ACSConv",
        "operators.soft_acsconv.SoftACSConv",
        "operators.conv2_5d.Conv2_5d",
        "operators.base_acsconv._ACSConv",
        "operators.functional.acs_conv_f",
        "models.acsunet.ACSUNet",
        "models.convnext.convnext_tiny",
    ],
)
def test_import_paths_that_people_use(path):
    module, _, name = f"acsconv.{path}".rpartition(".")
    assert getattr(importlib.import_module(module), name).__name__ == name


def test_a_decoder_of_acsunet_s_blocks():
    """Two segmentation networks outside build on this block of acsconv 0.1.1's, private as it is."""
    block = importlib.import_module("acsconv.models.acsunet")._DecoderBlock(12, 6, 4)
    assert list(dict(block.named_children())) == ["decode"]
    assert block(torch.randn(1, 12, 4, 4, 4)).shape == (1, 4, 4, 4, 4)


def test_a_feature_extractor_of_a_converted_network_s_children():
    """Others take a converted ResNet apart: ``nn.Sequential(*list(converted.model.children())[:-1])``."""
    from vision import prepare_torchvision

    prepare_torchvision()
    models = pytest.importorskip("torchvision").models
    model_2d = models.resnet18()
    model_2d.fc = nn.Linear(512, 4)
    model_3d = ACSConverter(model_2d)
    next(model_3d.parameters()).requires_grad = False
    features = nn.Sequential(*list(model_3d.model.children())[:-1]).eval()
    volume = torch.randn(1, 3, 32, 32, 32)
    with torch.no_grad():
        out = features(volume)
        assert out.shape == (1, 512, 1, 1, 1)
        torch.testing.assert_close(model_3d.fc(out.flatten(1)), model_3d.eval()(volume))
