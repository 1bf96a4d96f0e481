"""Publishing of trained weights: file, index, result and page belong together, and the committed ones do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from acsconv import weights
from acsconv.models import ACSUNet

from experiments.mylib.saving import write_json
from experiments.poc.generate_poc_data import SHAPES, VOXELS, draw
from experiments.poc.poc_config import SHAPE_CLASSES, VOXEL_CLASSES
from experiments.poc.publish import PAGE, PublishConfig, main, page
from experiments.poc.unet import UNet

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_published_loads_and_has_a_card(tmp_path, monkeypatch):
    for folder in ("python/acsconv/weights", "docs", "run"):
        (tmp_path / folder).mkdir(parents=True)
    network = UNet(3)
    torch.save(network.state_dict(), tmp_path / "run" / "model.dat")
    scores = {f"test_{kind}_{name}": 0.75 for kind in ("dice", "iou") for name in SHAPE_CLASSES}
    settings = {"classes": SHAPE_CLASSES, "train_samples": 4321, "validation_samples": 5, "test_samples": 6}
    settings |= {
        "batch_size": 7,
        "optimizer": "sgd",
        "lr": 0.1,
        "precision": "32-true",
        "seed": 0,
        "milestones": [5, 8],
        "gamma": 0.2,
    }
    result = {"metrics": {"test_dice": 0.5, "test_iou": 0.25, **scores}, "epochs": 9, "best_epoch": 8}
    result |= {"parameters": 10, "settings": settings, "environment": {"torch": "1.2.3"}}
    write_json(tmp_path / "run" / "result.json", result)
    names = {"name": "mine-2d", "folder": str(tmp_path / "run"), "root": str(tmp_path)}
    config = PublishConfig(**names, what="What it does.", command="train it", unlike="in another order")
    main(config)
    written = (tmp_path / PAGE).read_text()
    text = " ".join(written.split())
    sha256 = weights.hashlib.sha256((tmp_path / "python/acsconv/weights/mine-2d.safetensors").read_bytes())
    for fact in (
        "## `mine-2d`",
        "What it does.",
        "like `train it`, but in another order: 9 epochs",
        "torch 1.2.3",
        "4,321",
        "Dice 0.500",
        "| circle | 0.750 | 0.750 |",
    ):
        assert fact in text
    assert sha256.hexdigest() in text
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "python/acsconv/weights")
    assert all(
        torch.equal(value, network.state_dict()[key]) for key, value in weights.load("mine-2d").items()
    )
    UNet(3).load_state_dict(weights.load("mine-2d"))
    main(PublishConfig(root=str(tmp_path)))
    assert (tmp_path / PAGE).read_text() == written


def test_the_committed_page_is_that_of_the_committed_files():
    assert (ROOT / PAGE).read_text() == page(ROOT)


def shape_network(name):
    network = UNet(3)
    network.load_state_dict(weights.load(name))
    return network


@pytest.mark.parametrize(
    ("name", "classes", "makers", "load"),
    [
        ("poc-2d", SHAPE_CLASSES, SHAPES, shape_network),
        ("poc", VOXEL_CLASSES, VOXELS, lambda name: ACSUNet(6, pretrained=name)),
    ],
)
def test_published_networks_do_what_their_cards_say(name, classes, makers, load):
    """A noisy sample of another seed than the training's: most of the foreground is found, and rightly named."""
    assert weights.entries()[name]["classes"] == list(classes)
    sample, segs = draw(makers, len(makers) // 2 + 1, 48, 0.5, np.random.default_rng(99))
    with torch.no_grad():
        found = load(name).eval()(torch.from_numpy(sample)[None, None]).argmax(1)[0].numpy()
    labels = (segs.argmax(0) + 1) % len(segs)
    right = ((found == labels) & (labels > 0)).sum()
    assert right > 0.5 * (labels > 0).sum()
    assert ((found > 0) == (labels > 0)).mean() > 0.95
