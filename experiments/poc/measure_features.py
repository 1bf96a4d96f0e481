"""Measures, before any 3D training, how well the features of a network tell shapes from background.

    python experiments/poc/measure_features.py                       # with the newest 2D network's weights
    python experiments/poc/measure_features.py --seeds 10 --convs ACSConv Conv3d

The measurement is that of the original's notebook ``cal_features_mean_auc_before_training.ipynb``: each of the 32
channels before the network's last layer, at full size, is taken as a score for "this voxel is not background". A
channel's AUC, over all voxels of all test volumes, is the probability that a voxel of a shape scores higher than one of
the background, ties counting half; a channel that scores low for shapes is as good as its mirror image. The figure is
the mean over channels of max(AUC, 1 - AUC): 0.5 for features that know nothing, 1 for perfect ones.

Networks whose measurement is done are not measured again, so that what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

if not __package__:
    import _init_paths  # noqa: F401

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from experiments.mylib.options import parse
from experiments.mylib.results import read_results, table, write_results
from experiments.mylib.saving import read_json, write_json
from experiments.poc.poc_config import POCFeaturesConfig, find_shape_checkpoint
from experiments.poc.poc_dataset import BaseDatasetVoxel
from experiments.poc.train_poc_voxel import build

#: What the original's notebook found for ACS, with its own data and 2D network.
NOTEBOOK = {"pretrained": 0.880, "random": 0.720}


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the ROC curve, exact: the share of pairs (positive, negative) that ``scores`` order rightly.

    Args:
        scores: any shape; ties count half.
        positive: bool, of the same shape.

    Raises:
        ValueError: all are positive, or none is.
    """
    hits, misses = np.sort(scores[positive]), np.sort(scores[~positive])
    if not len(hits) or not len(misses):
        raise ValueError("positive: expected some true and some false")
    below = np.searchsorted(misses, hits, "left").sum() + np.searchsorted(misses, hits, "right").sum()
    return float(below / 2 / len(hits) / len(misses))


@torch.inference_mode()
def channel_aucs(
    network: nn.Module, volumes: Dataset, *, batch_size: int = 4, bar: str | None = None
) -> list[float]:
    """The AUC of each channel before the last layer of a 3D U-Net, over all voxels of all volumes.

    Args:
        network: made of :class:`experiments.poc.unet.UNet`, or an ``ACSUNet``; it is measured in evaluation mode.
        volumes: of (volume [1, D, H, W], labels [D, H, W]), all of one size; label 0 is the background.
        batch_size: volumes that go through the network at a time.
        bar: the title of a progress bar; None shows none.

    The features are kept at the half size at which the network computes them, and brought to full size by its own
    trilinear interpolation a channel at a time: 1.8 MB a volume of 48^3.
    """
    network.eval()
    found: list[torch.Tensor] = []
    foreground = []
    handle = network.dec1.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        for volume, labels in tqdm(DataLoader(volumes, batch_size), desc=bar, disable=bar is None):
            network(volume)
            foreground.append(labels > 0)
    finally:
        handle.remove()
    features, positive = torch.cat(found), torch.cat(foreground).numpy()
    aucs = []
    for channel in range(features.shape[1]):
        full = F.interpolate(features[:, channel : channel + 1], scale_factor=2, mode="trilinear")
        aucs.append(auc(full[:, 0].numpy(), positive))
    return aucs


def measure(config: POCFeaturesConfig, *, progress: bool = True) -> list[dict]:
    """A row for each convolution with the 2D network's weights, and for each with random ones by every seed.

    Returns:
        Rows of ``conv``, ``pretrained``, ``seed`` (None if pretrained), ``auc`` (the mean over channels of
        max(AUC, 1 - AUC)) and ``aucs`` (of each channel).
    """
    checkpoint = find_shape_checkpoint(config)
    rows = []
    for conv in config.convs:
        for seed in (None, *range(config.seeds)):
            aucs = measured(config, conv, seed, checkpoint if seed is None else None, progress=progress)
            mean = float(np.mean([max(value, 1 - value) for value in aucs]))
            rows.append({"conv": conv, "pretrained": seed is None, "seed": seed, "auc": mean, "aucs": aucs})
    return rows


def measured(
    config: POCFeaturesConfig, conv: str, seed: int | None, checkpoint: Path | None, *, progress: bool = True
) -> list[float]:
    """The channels' AUC of one network, read from its file if that measurement is done.

    Args:
        checkpoint: of the 2D network; None for random weights, by ``seed``.
    """
    volumes = BaseDatasetVoxel(config.data_test, config.test_samples)
    settings = {
        "conv": conv,
        "seed": seed,
        "weights": None if checkpoint is None else _digest(checkpoint.read_bytes()),
        "volumes": len(volumes),
        "first_volume": _digest(volumes[0][0].numpy().tobytes()),
    }
    name = f"{_digest(json.dumps(settings).encode())[:16]}.json"
    done = Path(config.save) / f"noise{config.noise}" / "features" / name
    if not done.exists():
        torch.manual_seed(seed or 0)
        network = build(conv, checkpoint)
        title = f"{conv}, {'pretrained' if seed is None else f'random {seed}'}" if progress else None
        aucs = channel_aucs(network, volumes, batch_size=config.batch_size, bar=title)
        done.parent.mkdir(parents=True, exist_ok=True)
        write_json(done, {"settings": settings, "aucs": aucs})
    return read_json(done)["aucs"]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def section(result: Mapping) -> str:
    """The page's section on this measurement, in Markdown, from a result file's object."""
    settings = result["settings"]
    lines = table(
        result["rows"],
        {"conv": "convolution", "pretrained": "2D weights"},
        {"auc": "mean over channels of max(AUC, 1 - AUC)"},
    )
    return (
        "## Features before any 3D training\n\n"
        "How well the 32 channels before the last layer tell shapes from background, over "
        f"{settings['volumes']} test volumes of {settings['size']}³; 0.5 is chance. 2D weights: those of the 2D "
        f"network (Dice {settings['shape_dice']:.3f} on its test images, after {settings['shape_epochs']} epochs on "
        f"{settings['shape_samples']:,} images), else random ones, with mean and standard deviation over seeds. The "
        f"original's notebook has {NOTEBOOK['pretrained']:.3f} and {NOTEBOOK['random']:.3f} for ACS, with one random "
        "network (and nearest-neighbour interpolation inside it, where the network itself has trilinear).\n\n"
        f"{lines}"
    )


def run(config: POCFeaturesConfig, *, progress: bool = True) -> dict:
    """Measures, writes ``config.result`` and returns its object."""
    rows = measure(config, progress=progress)
    shape = read_json(find_shape_checkpoint(config).with_name("result.json"))
    settings = {
        "volumes": config.test_samples,
        "size": BaseDatasetVoxel(config.data_test, 1)[0][0].shape[-1],
        "shape_epochs": shape["epochs"],
        "shape_samples": shape["settings"]["train_samples"],
        "shape_dice": shape["metrics"]["test_dice"],
        "shape_settings": shape["settings"],
    }
    write_results(config.result, rows, settings)
    return read_results(config.result)


if __name__ == "__main__":
    print(section(run(parse(POCFeaturesConfig, __doc__))))
