"""The measurement before any 3D training: the AUC is exact, features are the last ones, what is done is not redone."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from experiments.mylib.saving import write_json
from experiments.poc import generate_poc_data as data
from experiments.poc import measure_features
from experiments.poc.measure_features import auc, channel_aucs, run, section
from experiments.poc.poc_config import POCFeaturesConfig
from experiments.poc.poc_dataset import BaseDatasetVoxel
from experiments.poc.train_poc_voxel import build
from experiments.poc.unet import UNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two volumes of 12 voxels along every edge, and a 2D network beside its result."""
    root = tmp_path_factory.mktemp("features")
    data.generate_voxels(root / "test", 2, split="test", size=12, progress=False)
    torch.manual_seed(3)
    torch.save(UNet(3).state_dict(), root / "model.dat")
    shape = {"epochs": 4, "settings": {"train_samples": 1234}, "metrics": {"test_dice": 0.9}}
    write_json(root / "result.json", shape)
    return root


@pytest.fixture
def config(folder, tmp_path):
    return POCFeaturesConfig(
        data_test=str(folder / "test"),
        shape_checkpoint=str(folder / "model.dat"),
        test_samples=2,
        convs=("ACSConv", "SoftACSConv"),
        seeds=2,
        save=str(tmp_path),
        result=str(tmp_path / "features.json"),
    )


@pytest.mark.parametrize("levels", [1, 2, 7, 10**6])
def test_auc_is_that_of_scikit_learn(levels):
    rng = np.random.default_rng(0)
    scores = rng.integers(levels, size=(5, 400)).astype(np.float32)
    positive = rng.random((5, 400)) < 0.1 + 0.2 * (scores > levels / 2)
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive.ravel(), scores.ravel()), abs=1e-12)
    assert auc(-scores, positive) == pytest.approx(1 - auc(scores, positive), abs=1e-12)


def test_auc_by_hand_and_without_one_class():
    # Pairs in order: (3, 1), (3, 2), (2, 1); (2, 2) is a tie.
    assert auc(np.array([1.0, 2, 3, 2]), np.array([False, False, True, True])) == 3.5 / 4
    with pytest.raises(ValueError, match="positive"):
        auc(np.ones(3), np.ones(3, dtype=bool))


@pytest.mark.parametrize("conv", ["ACSConv", "Conv2_5d"])
def test_channels_are_those_before_the_last_layer(folder, conv):
    volumes = BaseDatasetVoxel(folder / "test", 2)
    network = build(conv, folder / "model.dat")
    found = channel_aucs(network, volumes, batch_size=1)
    before = []
    handle = network.final.register_forward_hook(lambda module, inputs, output: before.append(inputs[0]))
    with torch.no_grad():
        network.eval()(torch.stack([volume for volume, _ in volumes]))
    handle.remove()
    foreground = torch.stack([labels for _, labels in volumes]).ravel() > 0
    scores = before[0].movedim(1, 0).reshape(32, -1)
    expected = [roc_auc_score(foreground, channel) for channel in scores]
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(found)) > 20  # not all the same


def test_what_is_measured_and_written(config, monkeypatch):
    result = run(config, progress=False)
    rows = result["rows"]
    assert [(row["conv"], row["pretrained"], row["seed"]) for row in rows] == [
        (conv, seed is None, seed) for conv in config.convs for seed in (None, 0, 1)
    ]
    assert len({row["auc"] for row in rows}) == 6
    for row in rows:
        assert len(row["aucs"]) == 32
        assert row["auc"] == pytest.approx(np.mean([max(value, 1 - value) for value in row["aucs"]]))
    text = section(result)
    assert "0.880" in text and "1,234 images" in text and "12³" in text
    mean, spread = np.mean([rows[1]["auc"], rows[2]["auc"]]), np.std([rows[1]["auc"], rows[2]["auc"]], ddof=1)
    assert f"| ACSConv | no | {mean:.3f} ± {spread:.3f} | 2 |" in text
    assert f"| ACSConv | yes | {rows[0]['auc']:.3f} | 1 |" in text

    # Done is done, until the 2D network is another one.
    measured = []
    monkeypatch.setattr(
        measure_features, "channel_aucs", lambda network, *_, **__: measured.append(network) or [0.25]
    )
    assert run(config, progress=False)["rows"] == rows
    assert not measured
    other = config.save + "/model.dat"
    torch.save(UNet(3).state_dict(), other)
    write_json(
        measure_features.Path(config.save) / "result.json",
        {"epochs": 1, "settings": {"train_samples": 1}, "metrics": {"test_dice": 0.5}},
    )
    config.shape_checkpoint = other
    again = run(config, progress=False)["rows"]
    assert len(measured) == 2 and [row["auc"] for row in again if row["pretrained"]] == [0.75, 0.75]
