"""The proof of concept from data to page, at toy size; what is not repeated, and what is refused."""

import dataclasses
import shutil

import pytest
import torch

from experiments.mylib import figures
from experiments.mylib.networks import CONVS
from experiments.mylib.results import read_results
from experiments.mylib.saving import read_json
from experiments.poc import report, train_common
from experiments.poc import run as run_module
from experiments.poc.poc_config import SHAPE_CLASSES, VOXEL_CLASSES, POCShapeConfig
from experiments.poc.run import RunConfig, run
from experiments.poc.train_common import summary
from experiments.poc.train_poc_shape import train_shape
from experiments.poc.train_poc_voxel import build
from experiments.poc.unet import UNet

TOY = {
    "edge": 12,
    "shape_train": 8,
    "shape_valid": 3,
    "shape_test": 2,
    "voxel_train": 4,
    "voxel_valid": 3,
    "voxel_test": 2,
    "shape_epochs": 1,
    "voxel_epochs": 1,
    "seeds": 1,
    "accelerator": "cpu",
}


def toy(folder, **options):
    paths = {
        "root": str(folder / "run"),
        "result": str(folder / "poc-small.json"),
        "figures": str(folder / "figures"),
    }
    return RunConfig(**{"size": "small", **TOY, **paths, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poc")
    return folder, read_results(run(toy(folder), progress=False))


def of(result, kind):
    return [row for row in result["rows"] if row["kind"] == kind]


def test_every_kind_of_training_has_a_row_and_a_folder(finished):
    folder, result = finished
    kinds = {(row["conv"], row["pretrained"]) for row in of(result, "voxel")}
    assert kinds == {(conv, pretrained) for conv in CONVS for pretrained in (True, False)}
    assert {row["conv"] for row in of(result, "features")} == set(CONVS)
    for row in of(result, "voxel"):
        values = [row[f"test_{metric}_{name}"] for metric in ("dice", "iou") for name in VOXEL_CLASSES]
        assert all(value is None or 0 <= value <= 1 for value in values)  # None: two volumes lack that solid
        assert len(row["val_dice"]) == 1 and row["seconds"] > 0
    assert (folder / "run/tmp/poc/noise0.5/shape/2d/model.dat").exists()
    assert (folder / "run/tmp/poc/noise0.5/voxel/Conv3d/random-seed0/model.dat").exists()


def test_each_training_has_its_own_data_for_each_purpose(finished, monkeypatch, tmp_path):
    folder, _ = finished
    trainings = folder / "run/tmp/poc/noise0.5"
    for run_of, train_samples in (("shape/2d", 8), ("voxel/ACSConv/random-seed0", 4)):
        settings = read_json(trainings / run_of / "result.json")["settings"]
        found = [settings[f"{purpose}_samples"] for purpose in ("train", "validation", "test")]
        assert found == [train_samples, 3, 2]
        made = {"size": 12, "noise": 0.5, "seed": 0}
        assert settings["data"] == {"train": made, "validation": made, "test": made}
    used = []
    monkeypatch.setattr(train_common, "train", lambda module, data, **_: used.append(data) or {})
    root = folder / "run/data/poc/shape"
    folders = {f"data_{split}": str(root / split) for split in ("train", "valid", "test")}
    train_shape(POCShapeConfig(**folders, train_samples=8, save=str(tmp_path)))
    roots = [dataset.data_root for dataset in (used[0].train, used[0].validation, used[0].test)]
    assert roots == [root / "train", root / "valid", root / "test"]


def test_data_that_are_not_what_is_said_are_refused(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "run/data/poc/shape", tmp_path, dirs_exist_ok=True)
    folders = {f"data_{split}": str(tmp_path / split) for split in ("train", "valid", "test")}
    config = POCShapeConfig(**folders, train_samples=8, save=str(tmp_path))
    with pytest.raises(ValueError, match=r"noise: .*train was made with 0\.5, the setting says 0\.1"):
        train_shape(dataclasses.replace(config, noise=0.1))
    (tmp_path / "test" / "shape_1.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"shape_1\.npz is missing"):
        train_shape(config)


def test_other_data_are_another_training(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run" / "data")
    with pytest.raises(RuntimeError, match=r"'size': 12.* there and .*'size': 16"):
        run(toy(tmp_path, edge=16), progress=False)


def test_figures_and_page_are_made_from_the_result_file(finished, monkeypatch):
    folder, result = finished
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "poc-small-curves.png",
        "poc-small-predictions.png",
    }
    monkeypatch.setattr(report, "FOLDER", folder)
    page = report.page()
    row = next(row for row in of(result, "voxel") if (row["conv"], row["pretrained"]) == ("ACSConv", True))
    assert (
        f"| ACSConv | yes | {row['test_dice']:.3f} | {row['test_iou']:.3f} | {row['val_dice'][0]:.3f} | 1 |"
        in page
    )
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append((figure, path)))
    report.draw_validation(result, folder)
    ((figure, path),) = drawn
    assert path.name == "poc-small-curves.png" and [axes.get_title() for axes in figure.axes] == list(CONVS)
    line = figure.axes[0].lines[0]
    assert line.get_label() == "pretrained"
    assert line.get_xydata().tolist() == [[1, row["val_dice"][0]]]
    assert (
        "## Results, small size\n" in page
        and "Not run yet: `python experiments/poc/run.py --size full`" in page
    )


def test_an_epoch_without_a_dice_stops_nothing(finished, monkeypatch):
    folder, result = finished
    row = next(row for row in result["rows"] if row["kind"] == "voxel")
    monkeypatch.setattr(run_module, "read_curve", lambda *_: {1: float("nan"), 2: 0.5})
    trained = {**row, "folder": folder, "metrics": {"test_dice": None, "test_iou": None}}
    assert summary(trained).startswith("test Dice -, IoU -")
    broken = {**row, **run_module._row(trained)}
    assert broken["val_dice"] == [None, 0.5] and broken["test_dice"] is None
    again = {**result, "rows": [broken if other is row else other for other in result["rows"]]}
    report.draw_validation(again, folder / "broken")
    assert "| ACSConv | yes | - | - | 0.500 | 0-1 |" in report.results_section(again)


def interrupted_at(call):
    """``train_voxel``, which is interrupted when it is called for the so manieth time."""
    train, calls = run_module.train_voxel, []

    def train_or_stop(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return train(*args, **options)

    return train_or_stop


def test_the_committed_page_is_that_of_the_committed_files():
    assert report.PAGE.read_text() == report.page()


def test_what_is_missing_is_done_and_nothing_else(finished, tmp_path, monkeypatch):
    folder, result = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    missing = tmp_path / "run/tmp/poc/noise0.5/voxel/ACSConv/pretrained-seed0"
    shutil.rmtree(missing)
    (tmp_path / "poc-small.json").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "train_voxel", interrupted_at(2 * len(CONVS)))  # what is missing comes last
        run(toy(tmp_path), progress=False)
    assert len(of(read_results(tmp_path / "poc-small.json"), "voxel")) == 2 * len(CONVS) - 1
    fits = []
    trainer = pytest.importorskip("lightning").Trainer
    fit = trainer.fit
    monkeypatch.setattr(
        trainer, "fit", lambda self, *args, **options: fits.append(fit(self, *args, **options))
    )
    again = read_results(run(toy(tmp_path), progress=False))
    assert len(fits) == 1

    def timeless(rows):
        return [{k: v for k, v in row.items() if k not in ("seconds", "peak_memory")} for row in rows]

    assert timeless(again["rows"]) == timeless(result["rows"])


def test_an_interrupted_repetition_leaves_the_result_file_whole(finished, monkeypatch):
    folder, result = finished
    monkeypatch.setattr(run_module, "train_voxel", interrupted_at(2))
    with pytest.raises(KeyboardInterrupt):
        run(toy(folder), progress=False)
    assert read_results(folder / "poc-small.json")["rows"] == result["rows"]


def test_another_setting_is_refused(finished):
    folder, _ = finished
    with pytest.raises(RuntimeError, match="epochs is 1 there and 2 now"):
        run(toy(folder, voxel_epochs=2), progress=False)


def test_several_devices_need_a_name():
    with pytest.raises(ValueError, match="run: on several devices give it a name"):
        train_shape(POCShapeConfig(devices=2))


@pytest.mark.parametrize("conv", CONVS)
def test_pretrained_networks_have_the_2d_networks_weights(conv, tmp_path):
    network = UNet(len(SHAPE_CLASSES)).eval()
    torch.save(network.state_dict(), tmp_path / "model.dat")
    pretrained, random = build(conv, tmp_path / "model.dat").eval(), build(conv, None).eval()
    assert pretrained.final.weight.shape[0] == len(VOXEL_CLASSES)
    if conv in ("ACSConv", "SoftACSConv"):
        weight = network.enc1.encode[0].weight
        assert torch.equal(pretrained.enc1.encode[0].weight, weight)
        assert not torch.equal(random.enc1.encode[0].weight, weight)
    else:  # 5D weights: on a volume that repeats an image, away from its ends, they find what the 2D network does
        image = torch.rand(1, 1, 12, 12)
        volume = image[:, :, None].expand(-1, -1, 12, -1, -1)
        features = network.enc1(image)
        torch.testing.assert_close(pretrained.enc1(volume)[:, :, 3], features, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(random.enc1(volume)[:, :, 3], features, atol=1e-2)


def test_a_2d_checkpoint_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "model.dat"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"model\.dat is damaged.*train_poc_shape\.py"):
        build("ACSConv", path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"model\.dat is not of the 2D U-Net"):
        build("ACSConv", path)
