"""The proof of concept from data to page, at toy size; what is not repeated, and what is refused."""

import shutil

import pytest
import torch

from experiments.mylib.networks import CONVS
from experiments.mylib.results import read_results
from experiments.poc import report
from experiments.poc.poc_config import SHAPE_CLASSES, VOXEL_CLASSES, POCShapeConfig
from experiments.poc.run import RunConfig, run
from experiments.poc.train_poc_shape import train_shape
from experiments.poc.train_poc_voxel import build
from experiments.poc.unet import UNet

TOY = {
    "edge": 12,
    "shape_train": 8,
    "shape_valid": 2,
    "shape_test": 2,
    "voxel_train": 4,
    "voxel_valid": 2,
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
    assert (
        "## Results, small size\n" in page
        and "Not run yet: `python experiments/poc/run.py --size full`" in page
    )


def test_what_is_missing_is_done_and_nothing_else(finished, tmp_path, monkeypatch):
    folder, result = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    missing = tmp_path / "run/tmp/poc/noise0.5/voxel/ACSConv/pretrained-seed0"
    shutil.rmtree(missing)
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
