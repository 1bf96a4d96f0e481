"""The LIDC-IDRI experiments on small files in the published formats."""

import csv
import runpy
import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from experiments.lidc import networks, train_classification, train_segmentation
from experiments.lidc.experiment import data_module
from experiments.lidc.lidc_config import LIDCClassConfig, LIDCSegConfig
from experiments.lidc.lidc_dataset import LIDCSegDataset, LIDCTwoClassDataset
from experiments.lidc.loss import soft_dice_loss
from experiments.mylib.options import parse
from experiments.mylib.training import TrainingError

SIZE, CROP, MOVE = 16, 8, 2
GRADES = {"train": [1, 2, 3, 4, 5, 4], "test": [1, 5, 3, 2]}


def nodule(radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball in the middle of a dark volume, with a gradient that tells the axes apart."""
    z, y, x = np.mgrid[:SIZE, :SIZE, :SIZE]
    ball = ((z - SIZE // 2) ** 2 + (y - SIZE // 2) ** 2 + (x - SIZE // 2) ** 2) <= radius**2
    return (ball * 150 + z + 2 * y + 0.5 * x).astype(np.uint8), ball.astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder as the authors' archive has it."""
    folder = tmp_path_factory.mktemp("lidc")
    (folder / "nodule").mkdir()
    (folder / "info").mkdir()
    names = {part: [f"{part}{i}.npz" for i in range(len(grades))] for part, grades in GRADES.items()}
    with (folder / "train_test_split.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "train", "test"])
        for i in range(6):
            rows.writerow([i, names["train"][i], names["test"][i] if i < 4 else ""])
    with (folder / "info" / "lidc_nodule_info_new_with_subset.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "subset", "malignancy_mode"])
        for part, grades in GRADES.items():
            for name, grade in zip(names[part], grades):
                rows.writerow([name.removesuffix(".npz"), 0, grade])
                voxel, mask = nodule(1 + grade / 2)
                np.savez_compressed(
                    folder / "nodule" / name, voxel=voxel, answer1=mask.astype(bool), answer2=mask
                )
    return folder


def test_segmentation_items(data) -> None:
    dataset = LIDCSegDataset(CROP, MOVE, data, train=False)
    assert len(dataset) == 4
    volume, mask = dataset[1]
    voxel, ball = nodule(1 + 5 / 2)
    middle = (slice(SIZE // 2 - CROP // 2, SIZE // 2 + CROP // 2),) * 3
    assert volume.shape == (3, CROP, CROP, CROP) and volume.dtype == torch.float32
    assert torch.equal(volume[2], torch.from_numpy(voxel[middle]).float() / 255 - 1)
    assert torch.equal(mask, torch.from_numpy(ball[middle]).long())
    assert LIDCSegDataset(CROP, MOVE, data, train=False, copy_channels=False)[0][0].shape[0] == 1


def test_training_moves_and_turns_the_volume_and_its_mask_alike(data) -> None:
    dataset = LIDCSegDataset(CROP, MOVE, data, train=True)
    found = [dataset[5] for _ in range(30)]
    assert len({tuple(volume.flatten().tolist()) for volume, _ in found}) > 25
    centres = {tuple(mask.nonzero().float().mean(0).tolist()) for _, mask in found}
    assert len(centres) > 10
    for volume, mask in found:
        bright = volume[0] * 255 + 255 > 120
        assert torch.equal(bright, mask.bool())
    still, turned = (LIDCSegDataset(CROP, 0, data, augment=augment) for augment in (False, True))
    found = {tuple(turned[5][0].flatten().tolist()) for _ in range(30)}
    assert len(found) > 10
    assert {tuple(sorted(values)) for values in found} == {tuple(sorted(still[5][0].flatten().tolist()))}
    torch.manual_seed(1)
    first = dataset[0][0]
    torch.manual_seed(1)
    assert torch.equal(dataset[0][0], first)


def test_classification_leaves_undecided_nodules_out(data) -> None:
    train, test = (LIDCTwoClassDataset(CROP, MOVE, data, train=part) for part in (True, False))
    assert train.labels == [0, 0, 1, 1, 1] and test.labels == [0, 1, 0]
    volume, label = test[1]
    assert volume.shape == (3, CROP, CROP, CROP) and label == 1
    expected = LIDCSegDataset(CROP, MOVE, data, train=False)[1][0]
    assert torch.equal(volume, expected)


def broken(data, tmp_path, name: str, content: bytes | dict):
    """A copy of the data with one other file."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    return folder


VOXEL, MASK = nodule(3)
NAN = np.where(MASK, np.nan, 1.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nodule/test0.npz", b"", r"test0.npz is damaged.*github.com/M3DV/ACSConv"),
        ("nodule/test0.npz", b"PK\x03\x04 half a file", "test0.npz is damaged"),
        ("nodule/test0.npz", {"voxel": VOXEL}, "test0.npz lacks the array answer1; it holds voxel"),
        ("nodule/test0.npz", {"voxel": VOXEL[0], "answer1": MASK[0]}, r"voxel must be \[D, H, W\].*got \[16, 16\]"),
        ("nodule/test0.npz", {"voxel": VOXEL[:6], "answer1": MASK[:6]}, "each at least 8, got"),
        ("nodule/test0.npz", {"voxel": VOXEL, "answer1": MASK[1:]}, r"answer1 must be \[16, 16, 16\] numbers"),
        ("nodule/test0.npz", {"voxel": NAN, "answer1": MASK}, "voxel must be 0 to 255, got nan"),
        ("nodule/test0.npz", {"voxel": VOXEL - 1000.0, "answer1": MASK}, "voxel must be 0 to 255, got -"),
        ("nodule/test0.npz", {"voxel": VOXEL, "answer1": MASK * 255}, "answer1 must be a mask of 0 and 1"),
        ("train_test_split.csv", b"train,valid\na.npz,b.npz\n", "lacks the column test"),
        ("train_test_split.csv", b"train,test\na.npz,\n", "column test is empty"),
        ("train_test_split.csv", b"train,test\na.npz,\xff\n", "damaged or no table"),
        ("train_test_split.csv", b"train,test\na.npz,b.npz\n", r"1 of 1 files are missing: .*b\.npz.*M3DV"),
        ("info/lidc_nodule_info_new_with_subset.csv", b"index,malignancy_mode\na,6\n", "must be 1 to 5, got '6'"),
    ],
)  # fmt: skip
def test_other_files_are_refused(data, tmp_path, name, content, message) -> None:
    folder = broken(data, tmp_path, name, content)
    kind = LIDCTwoClassDataset if name.startswith("info") else LIDCSegDataset
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        kind(CROP, MOVE, folder, train=False)[0]


def test_truncated_file_is_refused(data, tmp_path) -> None:
    whole = (data / "nodule" / "test0.npz").read_bytes()
    folder = broken(data, tmp_path, "nodule/test0.npz", whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"test0.npz is damaged"):
        LIDCSegDataset(CROP, MOVE, folder, train=False)[0]


def test_missing_data_says_where_it_comes_from(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train_test_split.csv is missing.*github.com/M3DV/ACSConv"):
        LIDCSegDataset(CROP, MOVE, tmp_path)


def settings(config=LIDCSegConfig, **options):
    return config(**{"crop_size": CROP, "move": MOVE, "num_workers": 0, **options})


def test_the_settings_are_the_originals() -> None:
    segmentation, classification = LIDCSegConfig(), LIDCClassConfig()
    assert (segmentation.batch_size, classification.batch_size) == (8, 24)
    for config in (segmentation, classification):
        assert (config.n_epochs, config.lr, config.milestones, config.gamma) == (100, 0.001, (0.5, 0.75), 0.1)
        assert (config.backbone, config.conv, config.weights) == ("resnet18", "ACSConv", "pretrained")
        assert (config.crop_size, config.move, config.seed) == (48, 5, 0)
    with pytest.raises(ValueError, match="pretrained_3d: only resnet18 loads video"):
        LIDCSegConfig(conv="Conv3d", pretrained_3d="video", backbone="vgg16")


def files_of_weights(folder) -> dict[str, str]:
    """ImageNet's, Kinetics' and MedicalNet's files, in their published formats; the 3D ones of shortcut type A."""
    imagenet = torchvision.models.resnet18().state_dict()
    torch.save(imagenet, folder / "resnet18-5c106cde.pth")
    backbone = {
        key: value for key, value in imagenet.items() if ".downsample." not in key and "fc." not in key
    }
    cubic = {
        f"module.{key}": torch.randn(*value.shape[:2], *[value.shape[-1]] * 3) * 0.01
        if value.dim() == 4
        else value
        for key, value in backbone.items()
    }
    old = {
        key: value for key, value in cubic.items() if "num_batches" not in key
    }  # of a PyTorch before 0.4.1
    video = {**old, "module.fc.weight": torch.rand(400, 512), "module.fc.bias": torch.rand(400)}
    torch.save({"epoch": 200, "arch": "resnet-18", "state_dict": video, "optimizer": {"state": {}}},
               folder / "resnet-18-kinetics.pth", _use_new_zipfile_serialization=False)  # fmt: skip
    cubic["module.conv1.weight"] = torch.randn(64, 1, 7, 7, 7)
    torch.save(
        {"state_dict": cubic}, folder / "resnet_18_23dataset.pth", _use_new_zipfile_serialization=False
    )
    return {
        "imagenet_pretrain_path": str(folder / "resnet18-5c106cde.pth"),
        "video_resnet18_pretrain_path": str(folder / "resnet-18-kinetics.pth"),
        "mednet_resnet18_pretrain_path": str(folder / "resnet_18_23dataset.pth"),
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, str]:
    return files_of_weights(tmp_path_factory.mktemp("weights"))


def test_imagenet_weights_of_every_conv(weights) -> None:
    file = torch.load(weights["imagenet_pretrain_path"], weights_only=True)
    flat, name = file["layer3.0.conv2.weight"], "layer3.0.conv2.weight"
    for conv in ("ACSConv", "Conv2_5d"):
        network = networks.build(settings(conv=conv, **weights), networks.CLASSIFICATION)
        assert torch.equal(network.backbone.state_dict()[name].reshape(flat.shape), flat)
    network = networks.build(settings(conv="Conv3d", **weights), networks.SEGMENTATION)
    assert torch.allclose(network.backbone.state_dict()[name].sum(2), flat, atol=1e-6)
    new = networks.build(settings(conv="ACSConv", pretrained=False, **weights), networks.SEGMENTATION)
    assert not torch.equal(new.backbone.state_dict()[name], flat)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("kind", "channels"), [("video", 3), ("mednet", 1)])
def test_published_3d_weights(weights, kind, channels, shortcut) -> None:
    config = settings(conv="Conv3d", pretrained_3d=kind, shortcut=shortcut, **weights)
    network = networks.build(config, networks.CLASSIFICATION)
    file = torch.load(weights[f"{kind}_resnet18_pretrain_path"], weights_only=True)["state_dict"]
    found = network.backbone.state_dict()
    assert found["conv1.weight"].shape == (64, channels, 7, 7, 7)
    compared = [key for key in found if "downsample" not in key and "num_batches" not in key]
    assert len(compared) == 17 + 4 * 17  # convolutions; four entries of each norm
    for key in compared:
        assert torch.equal(found[key], file[f"module.{key}"]), key
    assert any("downsample" in key for key in found) == (shortcut == "B")
    assert network(torch.rand(1, channels, 8, 8, 8)).shape == (1, 2)


def test_weights_that_cannot_be_downloaded(monkeypatch) -> None:
    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(
        OSError, match=r"could not download ImageNet weights .*no network.*--imagenet-pretrain-path"
    ):
        networks.build(settings(), networks.CLASSIFICATION)


def test_other_files_of_weights_are_refused(weights, tmp_path) -> None:
    def build(kind: str, **paths):
        return networks.build(settings(conv="Conv3d", pretrained_3d=kind, **paths), networks.CLASSIFICATION)

    with pytest.raises(FileNotFoundError, match=r"absent.pth is missing.*kenshohara/3D-ResNets-PyTorch"):
        build("video", video_resnet18_pretrain_path=str(tmp_path / "absent.pth"))
    with pytest.raises(FileNotFoundError, match=r"absent.pth is missing.*pytorch.org"):
        build("i3d", imagenet_pretrain_path=str(tmp_path / "absent.pth"))
    for content in (b"", b"not a checkpoint"):
        (tmp_path / "damaged.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged.pth is damaged.*Tencent/MedicalNet"):
            build("mednet", mednet_resnet18_pretrain_path=str(tmp_path / "damaged.pth"))
    whole = (tmp_path / "whole.pth", "resnet_18_23dataset.pth")
    with open(weights["mednet_resnet18_pretrain_path"], "rb") as file:
        whole[0].write_bytes(file.read()[:1_000_000])
    with pytest.raises(ValueError, match=r"whole.pth is damaged"):
        build("mednet", mednet_resnet18_pretrain_path=str(whole[0]))
    with pytest.raises(ValueError, match=r"resnet18-5c106cde.pth: pretrained: .* do not fit"):
        build("mednet", mednet_resnet18_pretrain_path=weights["imagenet_pretrain_path"])


def test_soft_dice_loss() -> None:
    logits, labels = torch.randn(2, 3, 4, 5, 6), torch.randint(2, (2, 4, 5, 6))  # no voxel of class 2
    probabilities = logits.softmax(1)
    expected = 0.0
    for label in (0, 1):
        p, t = probabilities[:, label], (labels == label).float()
        expected += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert torch.allclose(soft_dice_loss(logits, labels), expected / 3)


def trained(main, config, data, folder, **options):
    options = {"save": str(folder), "batch_size": 3, "n_epochs": 1, "progress": False, **options}
    return main(settings(config, data=str(data), **options))


@pytest.mark.parametrize("conv", ["ACSConv", "Conv2_5d"])
def test_trains_a_segmentation(data, tmp_path, conv, weights) -> None:
    folder = tmp_path / "run"
    result = trained(train_segmentation.main, LIDCSegConfig, data, folder, conv=conv, **weights)
    assert 0 <= result["metrics"]["test_dice_nodule"] <= 1
    assert result["validation"] == pytest.approx(result["metrics"]["test_dice"])  # the published protocol
    assert (result["settings"]["conv"], result["settings"]["loss"]) == (conv, "soft_dice_loss")
    network = networks.build(settings(conv=conv, pretrained=False), networks.SEGMENTATION)
    network.load_state_dict(torch.load(folder / "model.dat", weights_only=True))
    options = {**weights, "conv": conv}
    assert trained(train_segmentation.main, LIDCSegConfig, data, folder, **options) == result
    with pytest.raises(TrainingError, match="num_workers"):  # on which the crops depend
        trained(train_segmentation.main, LIDCSegConfig, data, folder, num_workers=1, **options)


def test_trains_a_classification_on_a_part_of_the_training_set(data, tmp_path, weights) -> None:
    options = {**weights, "conv": "Conv3d", "pretrained_3d": "mednet", "hold_out": 0.4}
    result = trained(train_classification.main, LIDCClassConfig, data, tmp_path / "run", **options)
    assert 0 <= result["metrics"]["test_auc"] <= 1
    sizes = [result["settings"][f"{part}_samples"] for part in ("train", "validation", "test")]
    assert sizes == [3, 2, 3]


def test_held_out_nodules_are_no_training_nodules(data) -> None:
    module = data_module(settings(data=str(data), hold_out=0.5), LIDCSegDataset)
    parts = [
        {str(part.dataset.files[index]) for index in part.indices}
        for part in (module.train, module.validation)
    ]
    assert len(parts[0]) == len(parts[1]) == 3 and not parts[0] & parts[1]
    assert (module.train.dataset.augment, module.validation.dataset.augment, module.test.augment) == (1, 0, 0)


@pytest.mark.parametrize("backbone", ["densenet121", "vgg16"])
def test_the_other_backbones(backbone) -> None:
    config = settings(backbone=backbone, pretrained=False)
    volume = torch.rand(1, 3, 8, 8, 8)
    with torch.no_grad():
        assert networks.build(config, networks.CLASSIFICATION).eval()(volume).shape == (1, 2)
        assert networks.build(config, networks.SEGMENTATION).eval()(volume).shape == (1, 2, 8, 8, 8)


@pytest.mark.parametrize("name", ["train_segmentation", "train_classification"])
def test_a_script_without_data_says_where_to_get_it(monkeypatch, name) -> None:
    script = Path(__file__).parents[2] / "experiments" / "lidc" / f"{name}.py"
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "--data", "absent"])
    with pytest.raises(FileNotFoundError, match=r"absent/.*csv is missing.*github.com/M3DV/ACSConv"):
        runpy.run_path(str(script), run_name="__main__")


def test_every_setting_is_an_option() -> None:
    words = ["--backbone", "vgg16", "--no-pretrained", "--milestones", "0.3", "0.6", "--data", "here"]
    config = parse(LIDCClassConfig, "LIDC", words)
    assert (config.backbone, config.weights, config.n_epochs) == ("vgg16", "nopretrained", 100)
    assert (config.milestones, config.data, config.batch_size) == ((0.3, 0.6), "here", 24)
    with pytest.raises(SystemExit):
        parse(LIDCClassConfig, "LIDC", ["--backbone", "resnet19"])
