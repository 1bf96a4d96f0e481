"""The MedMNIST3D experiments on small files in the published format."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiments.medmnist3d import experiment, models
from experiments.medmnist3d.dataset import INFO, SPLITS, MedMNIST3D, file_name
from experiments.medmnist3d.evaluation import accuracy, auc
from experiments.medmnist3d.experiment import MedMNIST3DConfig, run
from experiments.mylib.networks import CONVS
from experiments.mylib.options import parse


def arrays(classes: int = 2, size: int = 28, count: int = 4) -> dict[str, np.ndarray]:
    """What a published file holds: volumes that are brighter in the higher classes."""
    draw = np.random.default_rng(0)
    found = {}
    for split in SPLITS:
        labels = np.arange(count, dtype=np.uint8) % classes
        images = (
            draw.integers(0, 60, (count, size, size, size)) + 150 * labels[:, None, None, None] // classes
        )
        found |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    return found


@pytest.mark.parametrize("flag", INFO)
def test_items(tmp_path, flag) -> None:
    classes = len(INFO[flag].classes)
    stored = arrays(classes, count=classes)
    np.savez_compressed(tmp_path / f"{flag}.npz", **stored)
    for split in SPLITS:
        dataset = MedMNIST3D(tmp_path, flag, split)
        assert len(dataset) == classes
        volume, label = dataset[1]
        assert volume.shape == (1, 28, 28, 28) and volume.dtype == torch.float32 and label == 1
        assert torch.equal(volume[0], torch.from_numpy(stored[f"{split}_images"][1]).float() / 255)
    assert MedMNIST3D(tmp_path, flag, "val", as_rgb=True)[0][0].shape == (3, 28, 28, 28)


def test_the_64_voxel_files_and_the_shape_transform(tmp_path) -> None:
    stored = arrays(size=64, count=2)
    np.savez_compressed(tmp_path / "adrenalmnist3d_64.npz", **stored)
    plain = MedMNIST3D(tmp_path, "adrenalmnist3d", "train", size=64)[1][0]
    assert plain.shape == (1, 64, 64, 64)
    training, evaluation = (
        MedMNIST3D(tmp_path, "adrenalmnist3d", "train", 64, shape_transform=True, train=train)
        for train in (True, False)
    )
    assert torch.equal(evaluation[1][0], plain / 2)
    factors = [training[1][0].sum() / plain.sum() for _ in range(20)]
    assert 0 <= min(factors) < 0.4 and 0.6 < max(factors) <= 1
    assert MedMNIST3D(tmp_path, "adrenalmnist3d", "test", 64, shape_transform=True).train is False


def test_the_table_of_sets() -> None:
    assert {flag: len(info.classes) for flag, info in INFO.items()} == {
        "organmnist3d": 11, "nodulemnist3d": 2, "adrenalmnist3d": 2, "fracturemnist3d": 3, "vesselmnist3d": 2,
        "synapsemnist3d": 2,
    }  # fmt: skip
    assert len({info.md5[size] for info in INFO.values() for size in (28, 64)}) == 12


WHOLE = arrays()
OTHERS = {
    "no test labels": {name: value for name, value in WHOLE.items() if name != "test_labels"},
    "64 voxels under the name of 28": arrays(size=64, count=2),
    "slices": {**WHOLE, "test_images": WHOLE["test_images"][:, 0]},
    "fewer labels": {**WHOLE, "test_labels": WHOLE["test_labels"][1:]},
    "flat labels": {**WHOLE, "test_labels": WHOLE["test_labels"][:, 0]},
    "NaN": {**WHOLE, "test_images": np.full((4, 28, 28, 28), np.nan)},
    "empty": {**WHOLE, "test_images": WHOLE["test_images"][:0], "test_labels": WHOLE["test_labels"][:0]},
    "another set's classes": {**WHOLE, "test_labels": WHOLE["test_labels"] + 5},
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OTHERS["no test labels"], "lacks the array test_labels; it holds train_images"),
        (OTHERS["64 voxels under the name of 28"], r"test_images must be integers \['n', 28, 28, 28\].*got \[2, 64"),
        (OTHERS["slices"], r"test_images must be .* got \[4, 28, 28\]"),
        (OTHERS["fewer labels"], r"test_labels must be integers \['n', 1\].*got \[3, 1\]"),
        (OTHERS["flat labels"], r"test_labels must be .* got \[4\]"),
        (OTHERS["NaN"], "test_images must be integers .* float64"),
        (OTHERS["empty"], r"test_images must be .* got \[0, 28"),
        (OTHERS["another set's classes"], "test_labels must be 0 to 1, got 5 to 6"),
        (b"", "is damaged"),
        (b"<html>Not found</html>", "is damaged"),
        (0.5, "is damaged"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content, message) -> None:
    path = tmp_path / "nodulemnist3d.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **WHOLE)
        path.write_bytes(path.read_bytes()[: int(content * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"nodulemnist3d.npz.*{message}.*zenodo.org.*8755a7e9e05a4d9c"):
        MedMNIST3D(tmp_path, "nodulemnist3d", "test")


def test_a_script_without_data_says_where_to_get_it(tmp_path) -> None:
    script = Path(__file__).parents[2] / "experiments" / "medmnist3d" / "train_and_eval.py"
    command = [sys.executable, str(script), "--data_flag", "vesselmnist3d", "--size", "64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert "vesselmnist3d_64.npz is missing" in last and "zenodo.org/records" in last


def area(truth: np.ndarray, score: np.ndarray) -> float:
    """Of all pairs of a positive and a negative, the share with the higher score for the positive."""
    gaps = score[truth][:, None] - score[~truth][None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


@pytest.mark.parametrize("classes", [2, 3])
def test_auc_and_accuracy(classes) -> None:
    draw = np.random.default_rng(classes)
    labels = draw.integers(0, classes, 40)
    scores = np.round(draw.random((40, classes)), 1)  # with ties
    if classes == 2:
        scores[:, 0] = 1 - scores[:, 1]
        assert (scores == 0.5).any()
        assert auc(labels, scores) == pytest.approx(area(labels == 1, scores[:, 1]))
        right = [score.argmax() == label for label, score in zip(labels, scores)]
    else:
        expected = [area(labels == number, scores[:, number]) for number in range(3)]
        assert auc(labels, scores) == pytest.approx(np.mean(expected))
        right = [score.argmax() == label for label, score in zip(labels, scores)]
    assert accuracy(labels, scores) == np.mean(right)
    assert np.isnan(auc(labels * 0, scores))


@pytest.mark.parametrize(("flag", "parameters"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_networks_are_the_published_ones(flag, parameters, tmp_path) -> None:
    network = models.build(flag, "ACSConv", in_channels=3, num_classes=10)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters  # of ResNets for CIFAR
    state = network.state_dict()
    weight = state["layer4.0.conv1.weight"]
    bound = weight[0].numel() ** -0.5
    assert 0.9 * bound < weight.abs().max() <= bound  # PyTorch's initial weights, not torchvision's
    theirs = {
        name.replace("downsample.", "shortcut.").replace("fc.", "linear."): value + 1
        for name, value in state.items()
    }
    assert {"conv1.weight", "layer2.0.shortcut.1.running_var", "linear.bias"} <= set(theirs)
    torch.save({"net": theirs}, tmp_path / "best_model.pth")
    models.load_published(network, tmp_path / "best_model.pth")
    assert torch.equal(network.state_dict()["fc.weight"], theirs["linear.weight"])
    assert torch.equal(
        network.state_dict()["layer2.0.downsample.0.weight"], theirs["layer2.0.shortcut.0.weight"]
    )
    sizes = []
    network.layer4.register_forward_hook(lambda module, args, output: sizes.append(output.shape[2:]))
    assert network.eval()(torch.rand(1, 3, 16, 16, 16)).shape == (1, 10)
    assert sizes == [(2, 2, 2)]  # three strides, and no pooling
    other = models.build(flag, "ACSConv", in_channels=1, num_classes=10)
    with pytest.raises(ValueError, match=r"best_model.pth does not fit the network"):
        models.load_published(other, tmp_path / "best_model.pth")


class Toy(nn.Module):
    """In place of a ResNet: its parts that :func:`models.build_2d` changes, and as little as possible between."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.maxpool = nn.Conv2d(3, 64, 7), nn.MaxPool2d(2)
        self.conv2, self.bn2 = nn.Conv2d(64, 6, kernel_size=3, stride=3, padding=1), nn.BatchNorm2d(6)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn2(self.conv2(self.maxpool(self.conv1(x)))).relu()
        return self.fc(self.avgpool(x).flatten(1))


@pytest.mark.parametrize("conv", CONVS)
def test_trains_and_evaluates(tmp_path, monkeypatch, conv) -> None:
    monkeypatch.setitem(models.MODELS, "resnet18", Toy)
    classes = 3 if conv == "ACSConv" else 2
    flag = "fracturemnist3d" if conv == "ACSConv" else "vesselmnist3d"
    np.savez(tmp_path / file_name(flag), **arrays(classes, count=5))
    config = MedMNIST3DConfig(
        data_flag=flag, root=str(tmp_path), output_root=str(tmp_path / "out"), conv=conv, num_epochs=1, batch_size=3,
        progress=False, shape_transform=classes == 2, memory_efficient=conv == "Conv2_5d",
    )  # fmt: skip
    result = run(config)
    test = result["evaluation"]["test"]
    assert test["AUC"] == pytest.approx(result["metrics"]["test_auc"])
    assert test["ACC"] == pytest.approx(result["metrics"]["test_accuracy"])
    assert result["validation"] == pytest.approx(result["evaluation"]["val"]["AUC"])
    name = f"{flag}_test_[AUC]{test['AUC']:.3f}_[ACC]{test['ACC']:.3f}@model1.csv"
    predictions = np.loadtxt(config.folder / name, delimiter=",")
    assert predictions.shape == (5, 1 + classes) and (predictions[:, 0] == range(5)).all()
    assert predictions[:, 1:].sum(1) == pytest.approx(np.ones(5))
    monkeypatch.setattr(experiment, "evaluate", None)
    assert run(config) == json.loads(json.dumps(result))  # at once, from its files
    monkeypatch.undo()
    monkeypatch.setitem(models.MODELS, "resnet18", Toy)
    weights = str(config.folder / "model.dat")
    again = run(MedMNIST3DConfig(**{**vars(config), "num_epochs": 0, "model_path": weights}))
    assert again == {"evaluation": result["evaluation"]}
    of_training = [np.loadtxt(path, delimiter=",") for path in tmp_path.glob(f"out/**/{flag}_train_*.csv")]
    assert len(of_training) == 2 and np.array_equal(*of_training)


def test_the_settings_are_the_published_ones() -> None:
    config = parse(MedMNIST3DConfig, "MedMNIST3D", ["--data_flag", "organmnist3d"])
    assert (config.num_epochs, config.batch_size, config.lr, config.gamma) == (100, 32, 0.001, 0.1)
    assert (config.milestones, config.conv, config.pretrained_3d) == ((0.5, 0.75), "ACSConv", "i3d")
    assert not config.as_rgb and not config.shape_transform
    with pytest.raises(SystemExit):
        parse(MedMNIST3DConfig, "MedMNIST3D", ["--size", "32"])
