"""Converters on networks of torchvision and segmentation_models_pytorch, and what PyTorch does with the results.

The table of all networks is docs/coverage.md, by benchmarks/model_coverage.py, whose checks run here on a few.
"""

import copy
import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from acsconv.converters import ACSConverter, convert
from acsconv.converters.rules import MODULE_RULES, RULES
from acsconv.operators import ACSConv
from numerics import relative_error
from torch import nn

from acsconv_cuda.decompositions import decompositions

for package in ("torchvision", "timm", "segmentation_models_pytorch", "tqdm"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (constraints.txt has its version)", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import model_coverage  # noqa: E402
import model_zoo  # noqa: E402
from vision import prepare_torchvision  # noqa: E402

prepare_torchvision()

import segmentation_models_pytorch as smp  # noqa: E402
import timm  # noqa: E402
from torchvision import models  # noqa: E402

NETWORKS = {
    "ResNet-18": lambda: models.resnet18(num_classes=5),
    "MobileNetV2": lambda: models.mobilenet_v2(num_classes=5),
    "ConvNeXt-Tiny": lambda: models.convnext_tiny(num_classes=5),
    "DenseNet-121": lambda: models.densenet121(num_classes=5),
    "DeepLabV3": lambda: models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    ),
    "U-Net": lambda: smp.Unet("resnet18", encoder_weights=None, classes=5),
}


def make(name):
    """A converted network in evaluation mode, a volume, and the network's output."""
    torch.manual_seed(0)
    converted = convert(NETWORKS[name]()).eval()
    volume = torch.rand(1, 3, 32, 32, 32)
    with torch.no_grad():
        return converted, volume, main_output(converted(volume))


def main_output(out):
    return out if isinstance(out, torch.Tensor) else next(iter(out.values()))


def test_the_readme_line():
    model_2d = models.resnet18(num_classes=5)
    state = {key: value.clone() for key, value in model_2d.state_dict().items()}
    model_3d = ACSConverter(model_2d)
    out = model_3d(torch.rand(2, 3, 32, 32, 32))
    out.sum().backward()
    assert out.shape == (2, 5)
    assert all(p.grad is not None for p in model_3d.parameters())
    assert list(model_3d.state_dict()) == list(state)
    assert isinstance(model_3d.layer1[0].conv1, ACSConv)
    model_3d.load_state_dict(state)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/alexnet",
        "torchvision/googlenet",
        "torchvision/mobilenet_v3_small",
        "torchvision/lraspp_mobilenet_v3_large",
        "timm/convnextv2_atto",
        "timm/edgenext_xx_small",
        "timm/resnest14d",
        "timm/tf_efficientnet_cc_b0_4e",
        "smp/FPN/mobilenet_v2",
        "smp/MAnet/resnet18",
        "smp/UPerNet/tu-convnext_atto",
    ],
)
def test_a_row_of_the_coverage_table(name):
    entries = {
        "torchvision": model_zoo.torchvision_entries,
        "timm": model_zoo.timm_entries,
        "smp": model_zoo.smp_entries,
    }[name.split("/")[0]]
    entry = next(entry for entry in entries() if entry.name == name)
    result = model_coverage.check(entry)
    assert result["status"] == "converted", result


def test_vgg_keeps_its_linear_layers():
    converted = convert(models.vgg11())
    assert converted.avgpool.output_size == (1, 7, 7)
    assert converted.eval()(torch.rand(1, 3, 32, 32, 48)).shape == (1, 1000)


def test_names_of_timm():
    model = ACSConverter(timm.create_model("resnet18", num_classes=4)).eval()
    volume = torch.rand(1, 3, 32, 32, 32)
    features = model.forward_features(volume)
    assert features.shape == (1, 512, 1, 1, 1)
    assert torch.equal(model.forward_head(features), model(volume))
    maps = ACSConverter(timm.create_model("resnet18", features_only=True)).eval()(volume)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, s, s, s) for c, s in ((64, 16), (64, 8), (128, 4), (256, 2), (512, 1))
    ]


def test_transformers_are_refused():
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        with pytest.raises(
            RuntimeError, match=r"depends on the size of the 2D image|windows would span slices"
        ):
            convert(timm.create_model(name))


@pytest.mark.parametrize("name", ["ResNet-18", "ConvNeXt-Tiny", "U-Net"])
def test_compile(name):
    converted, volume, expected = make(name)
    torch._dynamo.reset()
    out = torch.compile(converted, backend="aot_eager", fullgraph=True)(volume)
    assert relative_error(main_output(out).detach(), expected) < 1e-5


def test_compile_with_inductor_and_train():
    # Two samples of one voxel each reach the last batch normalisation, which magnifies rounding errors.
    converted = convert(NETWORKS["ResNet-18"]()).double()
    twin = copy.deepcopy(converted)
    volume = torch.rand(2, 3, 32, 32, 32, dtype=torch.float64)
    torch._dynamo.reset()
    expected = converted(volume)
    expected.square().sum().backward()
    out = torch.compile(twin)(volume)
    out.square().sum().backward()
    assert relative_error(out.detach(), expected.detach()) < 1e-9
    for a, b in zip(twin.parameters(), converted.parameters()):
        assert relative_error(a.grad, b.grad) < 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_export(name):
    converted, volume, expected = make(name)
    out = torch.export.export(converted, (volume,)).module()(volume)
    assert relative_error(main_output(out).detach(), expected) < 1e-5


@pytest.mark.parametrize("name", ["MobileNetV2", "U-Net"])
def test_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    converted, volume, expected = make(name)
    program = torch.export.export(converted, (volume,)).run_decompositions(decompositions())
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    runtime = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    out = runtime.run(None, {runtime.get_inputs()[0].name: volume.numpy()})[0]
    assert relative_error(torch.from_numpy(out), expected) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_mixed_precision_channels_last_and_functional_call(name):
    converted, volume, expected = make(name)
    parameters = dict(converted.named_parameters())
    with torch.no_grad():
        called = torch.func.functional_call(converted, parameters, (volume,))
        assert relative_error(main_output(called), expected) < 1e-5
        last = volume.to(memory_format=torch.channels_last_3d)
        moved = copy.deepcopy(converted).to(memory_format=torch.channels_last_3d)
        assert relative_error(main_output(moved(last)), expected) < 1e-3
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = main_output(converted(volume))
    # bfloat16 through many layers: wide, but far below what another volume gives
    assert relative_error(rounded, expected) < 0.2


def test_gradient_checkpointing_of_densenet():
    torch.manual_seed(0)
    plain = convert(models.DenseNet(8, (2, 2), 8, num_classes=3))
    saving = copy.deepcopy(plain)
    for module in saving.modules():
        if hasattr(module, "memory_efficient"):
            module.memory_efficient = True
    volume = torch.rand(2, 3, 32, 32, 32)
    for network in (plain, saving):
        network(volume).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters()):
        assert relative_error(b.grad, a.grad) < 1e-3


DDP = """
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from vision import prepare_torchvision
prepare_torchvision()
from torchvision import models
from acsconv.converters import ACSConverter

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
network = ACSConverter(models.resnet18(num_classes=3))
parallel = torch.nn.parallel.DistributedDataParallel(network)
volumes = torch.rand(2, 2, 3, 32, 32, 32)
network.eval()  # statistics of one process would differ from those of the other
parallel(volumes[rank]).square().mean().backward()
found = network.conv1.weight.grad.clone()
network.zero_grad()
sum(network(v).square().mean() for v in volumes).div(2).backward()
torch.testing.assert_close(found, network.conv1.weight.grad, rtol=1e-4, atol=1e-6)
dist.destroy_process_group()
"""


def test_distributed_data_parallel():
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DDP, str(rank), str(port), str(ROOT / "benchmarks")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def test_an_unfrozen_head_trains():
    model = models.mobilenet_v2(num_classes=2)
    for parameter in model.features.parameters():
        parameter.requires_grad_(False)
    model = ACSConverter(model)
    assert isinstance(model.classifier[1], nn.Linear)
    before = model.classifier[1].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.rand(2, 3, 32, 32, 32)).square().sum().backward()
    optimizer.step()
    assert model.features[0][0].weight.grad is None
    assert not torch.equal(before, model.classifier[1].weight)


def test_the_examples_of_the_manual(capsys):
    text = (ROOT / "docs" / "converters.md").read_text().replace('weights="DEFAULT"', "weights=None")
    held = dict(RULES), dict(MODULE_RULES)
    names: dict = {}
    try:
        for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(example, names)
        assert "layer1.0.conv1         Conv2d             ACSConv" in capsys.readouterr().out
        assert isinstance(names["model_3d"].layer4[0].conv1, nn.Conv2d)
        assert torch.Tensor.flip in RULES
    finally:
        for table, before in zip((RULES, MODULE_RULES), held):
            table.clear()
            table.update(before)
