"""Writes docs/poc.md, and the learning curves, from the result files of the proof of concept.

    python experiments/poc/report.py

The figure of predictions needs the trained networks: ``run.py`` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, variance

if not __package__:
    import _init_paths  # noqa: F401

import torch

from experiments.mylib.figures import draw_curves, three_planes
from experiments.mylib.files import read_checkpoint
from experiments.mylib.results import FOLDER, read_results, table
from experiments.poc.measure_features import section
from experiments.poc.poc_config import VOXEL_CLASSES, POCVoxelConfig, run_folder
from experiments.poc.poc_dataset import BaseDatasetVoxel
from experiments.poc.train_common import run_name
from experiments.poc.train_poc_voxel import build

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "poc.md"
FIGURES = ROOT / "docs" / "figures"
SHOWN = (("ACSConv", True), ("ACSConv", False), ("Conv3d", True), ("Conv3d", False))
KINDS = {"conv": "convolution", "pretrained": "2D pretraining"}

_HEAD = """# Proof of concept: from images to volumes

Does a 3D network profit from what its 2D twin learnt on images? The first experiment of the ACS paper, rebuilt: a 2D
U-Net is trained to segment noisy images of squares and circles; its weights, but for the last layer's, then begin a 3D
U-Net for noisy volumes of cones, pyramids, cubes, cylinders and balls. No volume looks like an image, but edges are
edges. The same 3D network with random weights is the comparison, for four kinds of convolution: ACS, Soft ACS, 2.5D and
`nn.Conv3d` (whose 2D weights are inflated as in I3D).

    python experiments/poc/run.py --size small      # all steps, within an hour on two CPU cores; resumes if interrupted
    python experiments/poc/run.py --size full       # the original's numbers, for a GPU

which leave result file and figures beside their data and trainings, in `tmp/poc-<size>`. For this page:

    python experiments/poc/run.py --size small --result benchmarks/results/experiments/poc-small.json \\
        --figures docs/figures
    python experiments/poc/report.py                # this page, from the result files

Each step is a script of its own too (`generate_poc_data.py`, `train_poc_shape.py`, `measure_features.py`,
`train_poc_voxel.py`; `--help` lists every setting; `poc_config.py` has the defaults). On several GPUs:
`torchrun --nproc-per-node 4 -- experiments/poc/train_poc_voxel.py --devices 4 --run mine`; steps are then of four times
`--train-batch-size` volumes, and batch norm uses the statistics of all GPUs (`SyncBatchNorm`).
"""

_TAIL = """## What differs from the original's scripts

* The epoch of a checkpoint is chosen on validation data of its own; the original chose it on the test data.
* The loss is Dice and cross-entropy (MONAI's); the original's was Dice over each batch.
* The means over classes leave the background out; the original's left its class 0 out, which was the cone.
* Dice and IoU are of all voxels of the test set together, not means over batches.
* `Conv3d` can be pretrained (inflated), and Soft ACS takes part; the original had neither.
"""

_SMALL = """**This is small**: little volumes, few of them, few steps. It shows that all steps work and what a training
at this size gains, not what the paper's sizes give.
"""


def main_table(result: Mapping) -> str:
    """Dice and IoU, mean over classes, and how fast they came, by convolution and pretraining."""
    rows = [{**row, "on_the_way": _mean(row["val_dice"])} for row in _voxel(result)]
    columns = {"test_dice": "Dice", "test_iou": "IoU", "on_the_way": "validation Dice, mean over the epochs"}
    return table(rows, KINDS, columns)


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the epochs that have a Dice: one that predicts no solid at all where there is none has not."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def draw_validation(result: Mapping, folder: Path) -> None:
    """Validation Dice over the epochs: ``poc-<size>-curves.png``."""
    panels: dict[str, dict[str, list[dict[int, float]]]] = {}
    for row in _voxel(result):
        seeds = panels.setdefault(row["conv"], {}).setdefault(
            "pretrained" if row["pretrained"] else "random", []
        )
        seeds.append({epoch: dice for epoch, dice in enumerate(row["val_dice"], 1) if dice is not None})
    draw_curves(folder / f"poc-{result['settings']['size']}-curves.png", panels, "validation Dice")


def draw_predictions(result: Mapping, folder: Path, root: Path) -> None:
    """A test volume, its labels, and what networks of seed 0 make of it: ``poc-<size>-predictions.png``.

    Args:
        root: the folder of ``run.py`` with data and trainings.
    """
    settings = result["settings"]
    volume, labels = BaseDatasetVoxel(root / POCVoxelConfig.data_test, 1)[0]
    overlays = {"labels": labels}
    for conv, pretrained in SHOWN:
        if conv in settings["convs"]:
            config = POCVoxelConfig(
                conv=conv,
                save=str(root / "tmp" / "poc"),
                noise=settings["noise"],
                run=run_name(pretrained, 0),
            )
            network = build(conv, None)
            network.load_state_dict(read_checkpoint(run_folder(config) / "model.dat", "run.py writes it"))
            with torch.inference_mode():
                title = f"{conv},\n{'pretrained' if pretrained else 'random'}"
                overlays[title] = network.eval()(volume[None]).argmax(1)[0]
    solid = (labels > 0).long()
    centre = [int(solid.sum([other for other in range(3) if other != axis]).argmax()) for axis in range(3)]
    path = folder / f"poc-{settings['size']}-predictions.png"
    three_planes(path, volume[0], overlays, VOXEL_CLASSES, centre)


def results_section(result: Mapping) -> str:
    """What ``run.py`` found at one size, in Markdown."""
    settings, rows = result["settings"], _voxel(result)
    size, edge = settings["size"], settings["edge"]
    shape = next(row for row in result["rows"] if row["kind"] == "shape")
    falls = [str(round(part * settings["voxel_epochs"])) for part in settings["voxel_milestones"]]
    rate = f" (the learning rate falls to a tenth after {' and '.join(falls)})" if falls else ""
    places = _each(result["environment"])
    machines = " and ".join(dict.fromkeys(place["machine"] for place in places))
    commits = ", ".join(dict.fromkeys((place["commit"] or "unknown")[:10] for place in places))
    done = f"{len(rows)} of {settings['trainings']} trainings" if len(rows) < settings["trainings"] else ""
    lines = [
        f"## Results, {size} size{f' ({done})' if done else ''}\n",
        f"{settings['shape_train']:,} training images of {edge}² for {settings['shape_epochs']} epochs (the 2D "
        f"network's Dice on {settings['shape_test']:,} test images: {shape['test_dice']:.3f}); then "
        f"{settings['voxel_train']} training volumes of {edge}³ for {settings['voxel_epochs']} epochs{rate}, "
        f"{settings['voxel_valid']} validation and {settings['voxel_test']} test volumes, noise {settings['noise']}. "
        "Test Dice and IoU are means over the five solids; validation Dice, averaged over the epochs, says how fast a "
        f"network learns. Mean ± standard deviation over n seeds. Made by `{result['command']}` on "
        f"{machines}, commit {commits}: "
        f"`benchmarks/results/experiments/poc-{size}.json`.\n",
        *([_SMALL] if size == "small" else []),
        main_table(result),
        _gains(rows),
        f"![Validation Dice of all kinds of networks over the epochs](figures/poc-{size}-curves.png)\n",
        f"![A test volume in three planes: input, labels and predictions](figures/poc-{size}-predictions.png)\n",
        "Dice of each solid:\n",
        table(rows, KINDS, {f"test_dice_{name}": name for name in VOXEL_CLASSES[1:]}),
        "IoU of each solid:\n",
        table(rows, KINDS, {f"test_iou_{name}": name for name in VOXEL_CLASSES[1:]}),
        "Mean channel AUC of the last features before any 3D training, with this run's 2D network "
        "(see below for what it is):\n",
        table(
            [row for row in result["rows"] if row["kind"] == "features"], KINDS, {"auc": "mean channel AUC"}
        ),
        "What the networks cost: parameters in thousands, peak memory of training in MiB "
        f"(batches of {settings['voxel_batch']}):\n",
        table(
            [
                {
                    **row,
                    "thousands": row["parameters"] / 1e3,
                    "mib": row["peak_memory"] and row["peak_memory"] / 2**20,
                }
                for row in rows
                if row["pretrained"]
            ],
            {"conv": "convolution"},
            {"thousands": "parameters", "mib": "memory"},
            digits=0,
        ),
    ]
    return "\n".join(lines)


def _each(environment: Mapping | list[Mapping]) -> list[Mapping]:
    return environment if isinstance(environment, list) else [environment]


def _voxel(result: Mapping) -> list[dict]:
    return [row for row in result["rows"] if row["kind"] == "voxel"]


def _gains(rows: list[dict]) -> str:
    """What pretraining changes, in words, with the standard error of the difference."""
    dice: dict[str, dict[bool, list[float]]] = {}
    for row in rows:
        found = dice.setdefault(row["conv"], {True: [], False: []})[row["pretrained"]]
        found += [] if row["test_dice"] is None else [row["test_dice"]]
    gains, clear = [], []
    for conv, kinds in dice.items():
        if all(len(values) > 1 for values in kinds.values()):
            gain = fmean(kinds[True]) - fmean(kinds[False])
            error = sqrt(sum(variance(values) / len(values) for values in kinds.values()))
            gains.append(f"{conv} {gain:+.3f} ± {error:.3f}")
            clear += [conv] if abs(gain) > 2 * error else []
    if not gains:
        return "What pretraining changes takes two seeds or more to tell.\n"
    return (
        f"What pretraining changes in the mean Dice, ± standard error: {', '.join(gains)}. More than twice the "
        f"standard error: {', '.join(clear) or 'none'}.\n"
    )


def page() -> str:
    """docs/poc.md, from the result files that are there."""
    parts = [_HEAD]
    for size in ("full", "small"):
        path = FOLDER / f"poc-{size}.json"
        parts.append(results_section(read_results(path)) if path.exists() else _not_run(size))
    features = FOLDER / "poc-features.json"
    if features.exists():
        parts.append(section(read_results(features)))
    return "\n".join([*parts, _TAIL])


def _not_run(size: str) -> str:
    return f"## Results, {size} size\n\nNot run yet: `python experiments/poc/run.py --size {size}`.\n"


def main() -> None:
    for size in ("full", "small"):
        path = FOLDER / f"poc-{size}.json"
        if path.exists():
            draw_validation(read_results(path), FIGURES)
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
